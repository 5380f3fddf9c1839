"""Exit codes of the command line, and the wrapper that gives them."""

from collections.abc import Iterator
from contextlib import contextmanager

from methods.core.errors import UserError
from specbench.util.terminal import print_traceback, tell

MISUSE = 2
TURNS_FAILED = 4  # the run is complete, but some of its turns failed
FAULT = 70  # sysexits' EX_SOFTWARE
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn errors into exit codes: a UserError into one line and ``MISUSE``, any other into a traceback and ``FAULT``.

    Python's own exit code for an exception is 1, which means a failed check here.
    """
    try:
        yield
    except UserError as error:
        tell(f"error: {error}")
        raise SystemExit(MISUSE) from None
    except Exception:
        print_traceback()
        raise SystemExit(FAULT) from None
