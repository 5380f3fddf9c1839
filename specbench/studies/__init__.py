"""Studies: measurements beside `specbench run` that explain its numbers. ``base`` has their common parts."""
