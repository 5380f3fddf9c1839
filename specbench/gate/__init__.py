"""The regression gate: whether a run is slower, guesses worse or says something else than its baseline."""
