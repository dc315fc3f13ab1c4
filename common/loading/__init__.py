"""Strict loading of saved models, with one-line errors."""
