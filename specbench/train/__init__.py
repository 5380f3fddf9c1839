"""Training of drafters on a frozen target."""
