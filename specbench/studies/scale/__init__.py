"""``specbench scale``: one method set over the cost-matched targets, smallest first: what grows with the target and what does not."""
