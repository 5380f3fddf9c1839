"""A run on disk. Everything that measures writes it; everything that analyses reads it."""
