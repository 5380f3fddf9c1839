"""`specbench profile`: the parts of a step's time, by the torch profiler."""
