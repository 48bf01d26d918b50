r"""Batch normalisation that can leave out rows."""

from typing import Any, Optional

import torch
from torch import Tensor

from torch_geometric_erwin.tree import Level
from torch_geometric_erwin.tree.level import check_level
from torch_geometric_erwin.utils.checks import (
    HALF,
    check_devices,
    check_int,
    check_mask,
    check_rows,
    check_tensor,
    check_weight,
)


class BatchNorm(torch.nn.BatchNorm1d):
    r"""Batch normalisation as in `"Batch Normalization: Accelerating Deep Network
    Training by Reducing Internal Covariate Shift" <https://arxiv.org/abs/1502.03167>`_,
    over any number of rows.

    Fewer than two rows have no variance. They are normalised by the running statistics,
    in training too, and do not change them. Rows that a mask excludes do not count in
    any statistic; no value of it is read, so nothing waits for a GPU.

    Args:
        num_features: The number of features :math:`C`.
        **kwargs: Further arguments of :class:`torch.nn.BatchNorm1d`.

    Shapes:
        - **input:** :math:`(N, C)`; **mask:** :math:`(N)`, bool; **output:**
          :math:`(N, C)`.

    Raises:
        TypeError: If the mask is not boolean.
        ValueError: If a shape does not fit, or running statistics are not tracked.

    Example:
        >>> norm = BatchNorm(4)
        >>> norm(torch.rand(1, 4)).shape
        torch.Size([1, 4])
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(check_int("num_features", num_features, 1), **kwargs)
        if not self.track_running_stats:
            raise ValueError(
                "'track_running_stats' must be true: running statistics serve where "
                "there are fewer than two rows (got False)"
            )

    def forward(self, input: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        r"""Runs the forward pass; rows where :obj:`mask` is false are not counted."""
        check_tensor("input", input)
        if input.dim() != 2:
            raise ValueError(f"'input' must have shape [N, C] (got {[*input.shape]})")
        check_rows("input", input, input.size(0), self.num_features)
        weight = self.running_mean
        check_devices(input=input, weights=weight)
        if not (input.dtype in HALF and weight.dtype == torch.float32):
            check_weight("input", input, weight)
        if mask is not None:
            check_mask("mask", mask, input.size(0))
            check_devices(input=input, mask=mask)
        if not self.training:
            return super().forward(input)
        if mask is not None:
            return self._masked(input, mask)
        if input.size(0) < 2:
            return self._normalise(input, self.running_mean, self.running_var)
        return super().forward(input)

    def on_level(self, input: Tensor, level: Level) -> Tensor:
        r"""Runs the forward pass; rows that padding added are not counted."""
        check_level("level", level)
        check_rows("input", input, level.num_rows, self.num_features)
        check_devices(input=input, level=level.pos)
        return self(input) if level.real is None else self(input, level.real)

    def _masked(self, input: Tensor, mask: Tensor) -> Tensor:
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        keep, count = mask[:, None], mask.sum()
        mean = torch.where(keep, x, 0).sum(0) / count.clamp(min=1)
        var = torch.where(keep, x - mean, 0).square().sum(0) / count.clamp(min=1)
        enough = count >= 2
        self._update(mean, var, count, enough)
        # With fewer than two rows the running statistics are used, and not changed.
        mean = torch.where(enough, mean, self.running_mean)
        var = torch.where(enough, var, self.running_var)
        return self._normalise(input, mean, var)

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor, count: Tensor, enough: Tensor) -> None:
        self.num_batches_tracked += enough
        rate: Tensor | float
        if self.momentum is None:
            rate = 1 / self.num_batches_tracked.clamp(min=1)
        else:
            rate = self.momentum
        unbiased = var * count / (count - 1).clamp(min=1)
        for buffer, value in ((self.running_mean, mean), (self.running_var, unbiased)):
            step = torch.where(enough, value.to(buffer.dtype) - buffer, 0)
            buffer += rate * step

    def _normalise(self, input: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        # Half precision is normalised in float32, as torch's own norm does.
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        x = (x - mean) * (var.to(x.dtype) + self.eps).rsqrt()
        if self.affine:
            x = x * self.weight + self.bias
        return x.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # `forward` has checked the input already
