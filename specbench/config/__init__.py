"""The settings of a run as the user gives them. Nothing here resolves defaults or loads weights."""
