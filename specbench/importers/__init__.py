"""Answer files of other tools, converted to run directories."""
