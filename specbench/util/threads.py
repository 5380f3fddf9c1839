"""The waiting of torch's CPU threads for work, which must be configured before torch is imported."""

import os

# An idle thread spins for a millisecond or more by default. Beside one other busy process that turns a forward pass
# of 8 ms into 850 ms. Without any spinning, waking takes 50 microseconds, a hundred times a token. This spin count
# covers the gap between two matrix products.
SPIN_COUNT = "1000"
THREAD_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # environment to pass on to processes elsewhere


def configure_thread_waiting() -> None:
    """Set how long idle OpenMP threads spin, unless the user's environment already says so."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
        os.environ.setdefault("KMP_BLOCKTIME", "0")  # LLVM's and Intel's OpenMP: threads sleep at once
