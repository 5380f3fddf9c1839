"""A run as asked for, and the facts that its names resolve to. Loads no weights."""
