"""``python -m specbench``."""

from specbench.cli.app import main

main()
