"""Residual vector quantization: codebooks, their training, the nearest-code search."""
