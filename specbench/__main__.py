"""``python -m specbench``: the same as the command ``specbench``."""

from specbench.cli.app import main

main()
