"""``specbench tune``: tree options for this device, from what the target and the drafters cost here and how deep drafts are accepted."""
