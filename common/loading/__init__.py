"""Loading saved models strictly: where they are, what their files may hold, one-line errors."""
