"""Models that score: judges of answers, judges of images, object detectors."""
