"""Checks in a forked process, which is ended if it hangs."""

import os
import signal
import sys
import traceback
from collections.abc import Callable


def passes_in_child(check: Callable[[], None], seconds: int = 60) -> bool:
    """Returns whether a check ends in a forked process within some seconds."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # A Python handler would not run while the process waits for a thread, so
            # the default action of the signal ends the process.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            check()
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0
