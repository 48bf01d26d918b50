r"""How threads wait for each other: imported before PyTorch, which looks once.

PyTorch's threads (GNU OpenMP) keep their cores busy while they wait. Beside another
process on the same cores a step then takes many times as long, as threads wait for
others that have no core; threads that sleep cost next to nothing. A variable that is
set in the shell comes first.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
