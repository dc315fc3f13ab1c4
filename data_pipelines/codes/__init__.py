"""Cached codes: the images of shards encoded once by the visual tokenizer."""
