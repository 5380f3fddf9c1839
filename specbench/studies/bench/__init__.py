"""`specbench bench`: the speed of specbench's own loop and harness, beside transformers and the methods' reference code."""
