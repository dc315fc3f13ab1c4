"""The model as a whole: assembled from parts, saved, loaded, adapted, quantized, published."""
