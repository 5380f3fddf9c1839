"""A run on disk. Code that measures writes it; code that analyses or reports reads it."""
