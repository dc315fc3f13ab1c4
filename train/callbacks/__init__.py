"""Callbacks of the trainer: logging, validation, checkpointing, guards, stopping."""
