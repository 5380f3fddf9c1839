"""``python -m tools.gpu_visit`` (``make gpu``): all measurements on a GPU, as steps that can be resumed.

A visit is one folder. Every call does the steps that are not done yet, each in a process of its own,
within a time budget.
"""
