r"""Batch normalisation over the rows that count."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


class BatchNorm(torch.nn.BatchNorm1d):
    r"""Batch normalisation as in `"Batch Normalization: Accelerating Deep Network
    Training by Reducing Internal Covariate Shift" <https://arxiv.org/abs/1502.03167>`_,
    over any number of rows.

    With fewer than two rows there is no variance: in training too, they are normalised
    by the running statistics, which stay as they are. Rows that a mask excludes enter
    no statistic; no value is read, so nothing waits for a GPU.

    Args:
        num_features: The number of features :math:`C`.
        **kwargs: Further arguments of :class:`torch.nn.BatchNorm1d`.

    Shapes:
        - **x:** :math:`(N, C)`; **mask:** :math:`(N)`, bool; **output:**
          :math:`(N, C)`.

    Raises:
        ValueError: If the input is not two-dimensional.

    Example:
        >>> norm = BatchNorm(4)
        >>> norm(torch.rand(1, 4)).shape
        torch.Size([1, 4])
    """

    def forward(self, input: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        r"""Runs the forward pass; rows where :obj:`mask` is false are not counted."""
        self._check_input_dim(input)
        if not (self.training and self.track_running_stats):
            return super().forward(input)
        if mask is not None:
            return self._masked(input, mask)
        if input.size(0) < 2:
            return self._normalise(input, self.running_mean, self.running_var)
        return super().forward(input)

    def _masked(self, input: Tensor, mask: Tensor) -> Tensor:
        keep = mask.to(input.dtype)[:, None]
        count = keep.sum()
        mean = (input * keep).sum(0) / count.clamp(min=1)
        var = ((input - mean).square() * keep).sum(0) / count.clamp(min=1)
        enough = count >= 2
        self._update(mean.detach(), var.detach(), count, enough)
        # The old statistics are the new ones where there are too few rows.
        mean = torch.where(enough, mean, self.running_mean)
        var = torch.where(enough, var, self.running_var)
        return self._normalise(input, mean, var)

    @torch.no_grad()
    def _update(
        self, mean: Tensor, var: Tensor, count: Tensor, enough: Tensor
    ) -> None:
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
        x = (input - mean) * (var + self.eps).rsqrt()
        if self.affine:
            x = x * self.weight + self.bias
        return x.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 2:
            raise ValueError(f"'input' must have shape [N, C] (got {[*input.shape]})")
