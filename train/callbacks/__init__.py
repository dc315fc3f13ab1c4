"""What happens around the steps of a run: logging, validation, guards, stopping."""
