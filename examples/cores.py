r"""Makes waiting threads sleep. Import it before PyTorch, which reads the setting once.

PyTorch's threads (GNU OpenMP) keep their cores busy while they wait for each other. If
another process uses the same cores, they wait for threads that have no core, and a step
takes many times as long. With this setting a thread checks a thousand times, for some
microseconds, and then sleeps. A value that is set in the shell is kept.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
