"""Checks in a forked process, which a hang ends too."""

import os
import signal
import sys
import traceback
from collections.abc import Callable


def passes_in_child(check: Callable[[], None], seconds: int = 60) -> bool:
    """Whether a check returns in a forked process, within some seconds."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # A handler of Python's would not run while the process waits for a thread.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            check()
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0
