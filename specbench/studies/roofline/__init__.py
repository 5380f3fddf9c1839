"""``specbench roofline``: how far a target and its drafters are from what this device's memory and arithmetic allow."""

NODES = (1, 2, 4, 8, 16, 32, 64, 128)  # tree sizes measured unless told otherwise
PAST = 512  # committed tokens before them
