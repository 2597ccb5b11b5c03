"""Archives made from code that nobody here wrote, and what becomes of each."""
