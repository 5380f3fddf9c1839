"""Suites: the questions a run asks. ``mini`` is in the package; others come from a file, a download or the hub."""

from specbench.suites.loading import MINI_VERSION, load, warmup
from specbench.suites.suite import TITLES, Question, Suite

__all__ = ["MINI_VERSION", "TITLES", "Question", "Suite", "load", "warmup"]
