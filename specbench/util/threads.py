"""How torch's threads wait for work; to be settled before torch is imported."""

import os

# Without a limit a thread that has nothing to do spins for a millisecond or more, and beside one busy process a forward pass
# of 8 ms takes 850; put to sleep at once it takes 50 microseconds to wake, a hundred times a token. Spinning this long spans
# the gap between two products.
SPINS = "1000"
SETTLED_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # what a process elsewhere has to be told


def patient_threads() -> None:
    """Leaves alone what the user has set."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
        os.environ.setdefault("KMP_BLOCKTIME", "0")  # the same for builds of torch with LLVM's or Intel's threads, which sleep at once
