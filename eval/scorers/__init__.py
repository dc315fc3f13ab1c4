"""Official scoring rules as pure functions of strings and numbers."""
