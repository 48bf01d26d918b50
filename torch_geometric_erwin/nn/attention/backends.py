r"""Which implementations of ball attention can serve a call."""

from typing import Optional

from torch import Tensor

from torch_geometric_erwin.ops.ball_attention import BACKENDS
from torch_geometric_erwin.utils.checks import (
    check_choice,
    check_devices,
    check_floating,
    check_tensor,
)


def explain_backends(
    q: Tensor, pos: Tensor, *others: Optional[Tensor]
) -> dict[str, str]:
    r"""Says for every backend of ball attention why it cannot serve a call.

    Args:
        q: The queries.
        pos: The row positions, which may require a gradient.
        *others: Further tensors of the call.

    Shapes:
        - **q:** :math:`(N, H, d)`; **pos:** :math:`(N, D)`.

    Returns:
        For each backend, in order of preference, the reason, or an empty string.

    Example:
        >>> import torch
        >>> q, pos = torch.rand(8, 2, 4), torch.rand(8, 3, requires_grad=True)
        >>> for name, reason in explain_backends(q, pos).items():
        ...     print(f"{name}: {reason or 'can run'}")
        native: can run
        triton: it runs on CUDA devices (got cpu)
        sdpa: it has no gradient to positions
        reference: can run
    """
    _check(q, pos)
    return BACKENDS.explain(q, pos, *others)


def choose_backend(
    q: Tensor, pos: Tensor, *others: Optional[Tensor], wanted: Optional[str] = None
) -> str:
    r"""Returns the wanted backend, or the most preferred one that can serve a call.

    Args:
        q: The queries.
        pos: The row positions, which may require a gradient.
        *others: Further tensors of the call.
        wanted: A backend's name.

    Shapes:
        - **q:** :math:`(N, H, d)`; **pos:** :math:`(N, D)`.

    Raises:
        ValueError: If the wanted backend does not exist or cannot serve the call.

    Example:
        >>> import torch
        >>> choose_backend(torch.rand(8, 2, 4).double(), torch.rand(8, 3))
        'sdpa'
    """
    _check(q, pos)
    if wanted is not None:
        check_choice("wanted", wanted, BACKENDS)
    return BACKENDS.choose(q, pos, *others, wanted=wanted)


def _check(q: Tensor, pos: Tensor) -> None:
    for name, tensor, dim in (("q", q, 3), ("pos", pos, 2)):
        check_tensor(name, tensor)
        check_floating(name, tensor)
        if tensor.dim() != dim:
            shape = "[N, H, d]" if name == "q" else "[N, D]"
            raise ValueError(
                f"'{name}' must have shape {shape} (got {[*tensor.shape]})"
            )
    check_devices(q=q, pos=pos)
