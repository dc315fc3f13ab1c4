"""The recipe: what a run is told, as typed settings."""
