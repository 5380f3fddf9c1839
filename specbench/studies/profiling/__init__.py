"""``specbench profile``: where the wall-clock of a round goes, under the torch profiler and apart from any timed run."""
