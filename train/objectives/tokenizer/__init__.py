"""The dual tokenizer's objective and its losses."""
