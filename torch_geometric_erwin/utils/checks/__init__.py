r"""Checks at the public boundary: a bad argument is refused here, with its name.

Checks that read values are skipped while a graph is traced, because a traced tensor has
none.
"""

from torch_geometric_erwin.utils.checks.clouds import (
    batch_to_ptr,
    check_dim,
    check_finite,
    check_pos,
    check_positions,
    check_ptr,
    given_ptr,
)
from torch_geometric_erwin.utils.checks.devices import (
    check_devices,
    check_weight,
    dtype_of_weights,
    is_autocast,
)
from torch_geometric_erwin.utils.checks.levels import (
    flag_per_level,
    per_level,
)
from torch_geometric_erwin.utils.checks.objects import (
    check_call,
    check_instance,
    is_plain,
    made_by,
)
from torch_geometric_erwin.utils.checks.scalars import (
    LIMIT,
    check_choice,
    check_edge_type,
    check_finite_number,
    check_flag,
    check_int,
    check_probability,
    check_radius,
)
from torch_geometric_erwin.utils.checks.tables import (
    check_edges,
    check_lengths,
    check_mask,
    check_permutation,
)
from torch_geometric_erwin.utils.checks.tensors import (
    HALF,
    check_edge_attr,
    check_floating,
    check_int64,
    check_rows,
    check_shape,
    check_tensor,
)
from torch_geometric_erwin.utils.checks.values import (
    has_memory,
    is_batched,
    is_readable,
    reads_values,
    unwrapped,
)

__all__ = [
    "HALF",
    "LIMIT",
    "batch_to_ptr",
    "check_call",
    "check_choice",
    "check_devices",
    "check_dim",
    "check_edge_attr",
    "check_edge_type",
    "check_edges",
    "check_finite",
    "check_finite_number",
    "check_flag",
    "check_floating",
    "check_instance",
    "check_int",
    "check_int64",
    "check_lengths",
    "check_mask",
    "check_permutation",
    "check_pos",
    "check_positions",
    "check_probability",
    "check_ptr",
    "check_radius",
    "check_rows",
    "check_shape",
    "check_tensor",
    "check_weight",
    "dtype_of_weights",
    "flag_per_level",
    "given_ptr",
    "has_memory",
    "is_autocast",
    "is_batched",
    "is_plain",
    "is_readable",
    "made_by",
    "per_level",
    "reads_values",
    "unwrapped",
]
