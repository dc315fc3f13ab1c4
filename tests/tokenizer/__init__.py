"""Tests of the visual tokenizer."""
