"""Measuring a run: load a session, order the work, answer every turn, write one record each."""
