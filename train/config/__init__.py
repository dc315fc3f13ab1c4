"""The recipe: the typed settings of a run."""
