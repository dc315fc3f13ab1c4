"""The evaluation harness: tasks, their registry, predictions, results and reports."""
