"""Metrics of images, codes and embeddings: torchmetrics' `Metric`s, so that processes merge their states."""
