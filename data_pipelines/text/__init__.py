"""Text without images: general questions with exact checkers, and what a language model answers itself."""
