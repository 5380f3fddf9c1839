"""`specbench tune`: tree sizes for this device, from measured costs and recorded acceptance."""

MAX_NEW_TOKENS = 64  # of a recorded answer, by default
PROMPTS = 20  # by default
