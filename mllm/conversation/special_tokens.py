"""The special tokens that DualToken adds to a text vocabulary, and those that a tokenizer has."""

from transformers import PreTrainedTokenizerBase

BOS, PAD, USER, ASSISTANT, END = "<|bos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
#: All that a language model with a chat template needs.
VISUAL_TOKENS = ("<|image_start|>", "<|image|>", "<|image_end|>", "<|unconditional|>")
IMAGE_START, IMAGE, IMAGE_END, UNCONDITIONAL = VISUAL_TOKENS
SPECIAL_TOKENS = (BOS, PAD, USER, ASSISTANT, END, *VISUAL_TOKENS)


def special_strings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every special token of a tokenizer, longer ones first."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*added, *tokenizer.all_special_tokens}, key=lambda token: (-len(token), token))
