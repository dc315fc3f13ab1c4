"""Figures of images, codes and embeddings; each gathers batch by batch and can be merged across processes."""
