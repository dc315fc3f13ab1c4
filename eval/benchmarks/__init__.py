"""One file for each benchmark or family: a loader of the official files, the official prompt, a score."""
