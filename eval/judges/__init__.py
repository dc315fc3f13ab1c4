"""Models that judge: of answers, of images, of objects."""
