"""The regression gate: checks whether a run is slower, drafts worse, or answers differently than its baseline."""
