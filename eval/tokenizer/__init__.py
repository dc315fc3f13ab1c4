"""Metrics of a visual tokenizer."""
