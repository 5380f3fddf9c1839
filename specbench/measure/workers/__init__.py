"""A run shared by several devices: worker processes that each load the target, and the executor that directs them."""
