"""Generation: text by transformers, images position by position, and both interleaved."""
