r"""Gradients of an operator that can be differentiated again."""

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
    r"""Returns the gradients for an operator's backward pass, with their own graph.

    The tensors that an operator saved have a history, and one of them may have been
    computed from another one (queries and distances both depend on positions). The
    gradients must not include that dependence, because autograd adds it later. So each
    input is replaced by a view of it, and derivatives are taken with respect to the
    views.

    Args:
        function: A function that computes the same by PyTorch's own operators.
        inputs: Its arguments, tensors and others.
        needed: Which of them need a gradient, as in :obj:`ctx.needs_input_grad`.
        grad: The gradient of the output.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = 2 * x
        >>> one = torch.ones([])
        >>> grads = differentiable_grads(torch.mul, (x, y), (True, True), one)
        >>> [g.item() for g in grads]  # without the path from x to y
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
