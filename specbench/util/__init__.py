"""Helpers without knowledge of speculative decoding: files, text, tables, memory, environment."""
