"""Speculative decoding methods for transformers models: one decode loop, one file per method.

The package knows nothing of benchmarks, files of results or command lines, and never imports
``specbench``.
"""
