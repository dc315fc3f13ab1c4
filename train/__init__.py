"""Training: one DeepSpeed loop, three objectives, one YAML recipe per run.

Run a recipe with ``dualtoken train RECIPE.yaml``, or under ``deepspeed`` / ``torchrun`` with
``-m dualtoken.scripts.train RECIPE.yaml``. This module imports nothing heavy.
"""
