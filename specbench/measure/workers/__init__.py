"""A run shared by several devices: workers that each hold a target, and what drives them as if they were one process."""
