r"""How threads wait for each other: imported before PyTorch, which looks once.

PyTorch's threads (GNU OpenMP) keep their cores busy while they wait, for longer than
anything takes. Beside another process on the same cores a step then takes many times as
long, as threads wait for others that have no core. So they look a thousand times, some
microseconds, and sleep. A variable that is set in the shell comes first.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
