"""Before a run: memory, arithmetic, and what only its last step would need."""
