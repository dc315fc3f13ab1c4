"""The toy world: procedural scenes, questions and dialogues about them, and their exact checker."""
