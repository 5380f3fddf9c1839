"""Losslessness of a run: where outputs differ from vanilla's, and whether a rounding tie explains it."""
