"""`specbench roofline`: the limits that this device's memory and arithmetic set to a target and its drafters."""

NODES = (1, 3, 7, 15, 31, 63, 127)  # drafted nodes of the trees measured by default; a plain step, 0, always is
PAST = 512  # committed tokens before the trees
