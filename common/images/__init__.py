"""Reading images that users give, as files or as objects."""
