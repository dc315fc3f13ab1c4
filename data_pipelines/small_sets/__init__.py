"""nano's small public data sets, from their git repositories."""
