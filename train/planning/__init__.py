"""Before a run: memory, FLOPs, and early checks of its last step."""
