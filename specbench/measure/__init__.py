"""Measuring a run: resolve and load it, order its turns, answer each of them, and write one record a turn."""
