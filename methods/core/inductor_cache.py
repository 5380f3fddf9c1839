"""Import of torch's compiler where its cache folder cannot be made.

torch makes the folder ``TORCHINDUCTOR_CACHE_DIR`` when ``torch._dynamo`` is imported, which
transformers does, and the import fails if it cannot. This module imports neither unless the folder
cannot be made.
"""

import os
import tempfile

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def import_dynamo() -> None:
    """Import ``torch._dynamo`` with another cache folder if the one that is set cannot be made.

    The variable is left as it was, so that back ends and worker processes find out by themselves.
    """
    folder = os.environ.get(VARIABLE)
    if folder is None:
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        os.environ[VARIABLE] = tempfile.gettempdir()
        try:
            import torch._dynamo  # noqa: F401
        finally:
            os.environ[VARIABLE] = folder
