"""Helpers that know nothing of speculative decoding: files, text, tables, memory, environment."""
