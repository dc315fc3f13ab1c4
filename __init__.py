"""DualToken: images as two streams of tokens, one for looks and one for meaning, in one language model.

The parts are imported by name: `dualtoken.tokenizer` (images to codes and back), `dualtoken.mllm` (the
language model that reads and writes those codes), `dualtoken.data_pipelines` and `dualtoken.train`. This
module itself imports nothing, so `import dualtoken` costs nothing.
"""

__version__ = "0.1.0"
