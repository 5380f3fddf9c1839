"""Published speedups, and the verdict of a run on each."""
