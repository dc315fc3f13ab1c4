"""The small model: made, evaluated, described and shown."""
