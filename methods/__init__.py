"""Speculative decoding methods for transformers models: one decode loop, one file per method.

The package knows nothing of benchmarks, files of results or command lines, and never imports
``specbench``.
"""

from methods.core.inductor_cache import import_dynamo

import_dynamo()  # before anything imports transformers, whose import fails without a cache folder
