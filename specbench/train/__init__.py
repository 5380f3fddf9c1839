"""Training of drafters on a frozen target, and of the shipped target itself."""
