"""A judge in a local folder: the probability of "Yes" to a question about an image."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ... import mllm  # noqa: F401  (registers this package's own models, which can judge too)
from ...common.errors import UserError, first_line


class LocalVqaJudge:
    """A model of transformers that answers questions about images, as a `VqaJudge`.

    `folder` holds the saved model with its processor and chat template. UserError without such a model.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu") -> None:
        import transformers

        if not folder.is_dir():
            raise UserError(f"{str(folder)!r} is not a folder; give a saved model that answers about images")
        self.name = folder.name
        try:
            self._processor: Any = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            kind: Any = transformers.AutoModelForMultimodalLM
            model = kind.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(
                f"{str(folder)!r} holds no model that answers about images: {first_line(error)}"
            ) from error
        self._model = model.to(device).eval()
        self._yes, self._no = (self._first_id(word) for word in ("Yes", "No"))
        if self._yes == self._no:
            raise UserError(f"the judge {self.name} has the same first token for Yes and No")

    @torch.inference_mode()
    def probabilities(self, image: Image.Image, question: str) -> tuple[float, float]:
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._model.device)
        probabilities = self._model(**inputs).logits[0, -1].float().softmax(dim=-1)
        return float(probabilities[self._yes]), float(probabilities[self._no])

    def _first_id(self, word: str) -> int:
        ids: list[int] = self._processor.tokenizer(word, add_special_tokens=False)["input_ids"]
        return ids[0]
