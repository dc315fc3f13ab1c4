"""The complete model: assembled from parts, saved, loaded, adapted, quantized, published."""
