"""`specbench scale`: the same methods on the cost-matched targets, smallest first, to see what changes with the target's size."""
