"""Published claims, and the verdict of a run on each."""
