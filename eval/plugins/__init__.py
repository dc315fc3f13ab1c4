"""Our models inside other harnesses."""
