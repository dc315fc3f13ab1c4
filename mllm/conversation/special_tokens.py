"""The special tokens that DualToken adds to a text vocabulary."""

BOS, PAD, USER, ASSISTANT, END = "<|bos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
IMAGE_START, IMAGE, IMAGE_END, UNCONDITIONAL = (
    "<|image_start|>",
    "<|image|>",
    "<|image_end|>",
    "<|unconditional|>",
)
SPECIAL_TOKENS = (BOS, PAD, USER, ASSISTANT, END, IMAGE_START, IMAGE, IMAGE_END, UNCONDITIONAL)
# All that a language model with a chat template of its own needs.
VISUAL_TOKENS = (IMAGE_START, IMAGE, IMAGE_END, UNCONDITIONAL)
