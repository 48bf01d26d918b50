r"""The gradient of an operator as a function that can be differentiated in its turn."""

from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
from torch import Tensor


def differentiable_grads(
    function: Callable[..., Tensor],
    inputs: Sequence[Any],
    needed: Sequence[bool],
    grad: Tensor,
) -> tuple[Optional[Tensor], ...]:
    r"""The gradients that an operator's backward pass returns, with their own graph.

    The tensors that an operator saved hang on their own history, and one of them may
    have been computed from another (queries and distances are both made of positions).
    A derivative must not follow that history: autograd will, once it has these
    gradients. So each input is seen through a view of its own, where derivatives stop.

    Args:
        function: A formulation of the operator by operators of PyTorch.
        inputs: Its arguments, tensors and others.
        needed: Which of them need a gradient, as :obj:`ctx.needs_input_grad`.
        grad: The gradient of the output.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = 2 * x
        >>> one = torch.ones([])
        >>> grads = differentiable_grads(torch.mul, (x, y), (True, True), one)
        >>> [g.item() for g in grads]  # the path from x to y is not theirs
        [6.0, 3.0]
    """
    views = [t.view_as(t) if needs else t for t, needs in zip(inputs, needed)]
    with torch.amp.autocast(grad.device.type, enabled=False):
        out = function(*views)
        wanted = [view for view, needs in zip(views, needed) if needs]
        grads = iter(
            torch.autograd.grad(out, wanted, grad.to(out.dtype), create_graph=True)
        )
    return tuple(next(grads) if needs else None for needs in needed)
