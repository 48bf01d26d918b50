r"""A plugin of pytest (`-p other_kernels`). With it, the package loads the native
library at the path in the environment variable ERWIN_KERNELS.
"""

import os
from importlib.machinery import ModuleSpec
from typing import Optional

from torch_geometric_erwin import _native


def _find(name: str, package: Optional[str] = None) -> ModuleSpec:
    return ModuleSpec(name, None, origin=os.environ["ERWIN_KERNELS"])


_native.find_spec = _find
