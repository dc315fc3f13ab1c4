"""Official benchmark files and sets of images, read one at a time."""
