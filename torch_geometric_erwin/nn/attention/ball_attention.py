r"""Attention inside the balls of a ball tree."""

from typing import Optional, Union

import torch
from torch import Tensor
from torch.nn import Parameter

from torch_geometric_erwin.nn.inits import reset_linear
from torch_geometric_erwin.nn.linear import Linear
from torch_geometric_erwin.ops.ball_attention import BACKENDS
from torch_geometric_erwin.ops.ball_attention.reference import dense_weights
from torch_geometric_erwin.ops.ball_attention.rows import QKV, in_tree_order
from torch_geometric_erwin.tree import Level
from torch_geometric_erwin.tree.level import check_level
from torch_geometric_erwin.utils.checks import (
    check_choice,
    check_devices,
    check_dim,
    check_finite_number,
    check_flag,
    check_floating,
    check_int,
    check_lengths,
    check_permutation,
    check_positions,
    check_rows,
    check_tensor,
    check_weight,
)
from torch_geometric_erwin.utils.rows import row_mask, to_dense


def ball_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    ball_len: Tensor,
    sigma: Tensor,
    *,
    ball_size: int,
    perm: Optional[Tensor] = None,
    scale: Optional[float] = None,
    backend: Optional[str] = None,
) -> Tensor:
    r"""Multi-head attention inside balls with a distance bias, from `"Erwin: A
    Tree-based Hierarchical Transformer for Large-scale Physical Systems"
    <https://arxiv.org/abs/2502.17019>`_.

    For rows :math:`i`, :math:`j` of one ball and head :math:`h`,

    .. math::
        \mathrm{out}_i = \sum_j \mathrm{softmax}_j \left( s \, q_i^{\top} k_j +
        \sigma_h \, \lVert p_i - p_j \rVert_2 \right) v_j

    with :math:`s = 1 / \sqrt{d}`. Distances are computed from differences of positions,
    so an offset of all positions costs no accuracy. A row attends only to rows of its
    ball. Positions that require a gradient get one, to any order (for forces
    :math:`-\partial E / \partial p`).

    Args:
        q: The queries.
        k: The keys.
        v: The values.
        pos: The row positions.
        ball_len: The number of rows of every ball. Balls are consecutive in the order
            of the rows, or in that of :obj:`perm` if it is given.
        sigma: The factor of the distance; negative values prefer near rows.
        ball_size: The largest entry that :obj:`ball_len` can have. On a GPU values are
            not checked; the Triton backend fills the output of a larger ball with NaN.
        perm: The row at every place of another (rotated) tree.
        scale: The factor :math:`s` of the scores.
        backend: :obj:`"native"` (CPU), :obj:`"triton"` (CUDA, no GPU has run it yet),
            :obj:`"sdpa"` or :obj:`"reference"`.
            :func:`~torch_geometric_erwin.nn.attention.explain_backends` says which of
            them can serve a call, and why others cannot. (default: the fastest that
            can)

    Shapes:
        - **q, k, v:** :math:`(N, H, d)`; **pos:** :math:`(N, D)`, in any unit of
          length; **ball_len:** :math:`(K)`; **sigma:** :math:`(H)`, per unit of length;
          **perm:** :math:`(N)`; **output:** :math:`(N, H, d)`.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If shapes do not fit, or the backend cannot serve the call.

    Example:
        >>> q, k, v = torch.rand(3, 5, 2, 4).unbind()
        >>> ball_len, sigma = torch.tensor([3, 2]), torch.full((2,), -1.0)
        >>> pos = torch.rand(5, 3)
        >>> ball_attention(q, k, v, pos, ball_len, sigma, ball_size=4).shape
        torch.Size([5, 2, 4])
    """
    _check(q, k, v, pos, ball_len, sigma, ball_size, perm)
    check_devices(q=q, pos=pos)
    if scale is not None:
        scale = check_finite_number("scale", scale)
    if backend is not None:
        check_choice("backend", backend, BACKENDS)
    return _attend((q, k, v), pos, ball_len, sigma, perm, ball_size, scale, backend)


def _attend(
    qkv: QKV,
    pos: Tensor,
    ball_len: Tensor,
    sigma: Tensor,
    perm: Optional[Tensor],
    ball_size: int,
    scale: Optional[float],
    backend: Optional[str],
) -> Tensor:
    q, k, v = qkv.unbind(1) if isinstance(qkv, Tensor) else qkv
    name = BACKENDS.choose(q, pos, k, v, ball_len, sigma, perm, wanted=backend)
    scale = q.size(-1) ** -0.5 if scale is None else scale
    out = BACKENDS[name].run(qkv, pos, ball_len, sigma, perm, ball_size, scale)
    return out.to(q.dtype)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    ball_len: Tensor,
    sigma: Tensor,
    ball_size: int,
    perm: Optional[Tensor],
) -> None:
    given = {"q": q, "k": k, "v": v, "sigma": sigma, "pos": pos}
    for name, tensor in given.items():
        check_tensor(name, tensor)
    check_devices(q=q, k=k, v=v, sigma=sigma)
    if q.dim() != 3 or q.shape != k.shape or q.shape != v.shape:
        shapes = [list(t.shape) for t in (q, k, v)]
        raise ValueError(f"'q', 'k', 'v' must have one shape [N, H, d] (got {shapes})")
    for name in ("q", "k", "v", "sigma"):
        check_floating(name, given[name])
    if not q.dtype == k.dtype == v.dtype:
        dtypes = [t.dtype for t in (q, k, v)]
        raise TypeError(
            f"'q', 'k', 'v' must have one floating-point dtype (got {dtypes})"
        )
    if sigma.dim() != 1 or sigma.size(0) != q.size(1):
        shape = list(sigma.shape)
        raise ValueError(f"'sigma' must have shape [{q.size(1)}] (got {shape})")
    if pos.dim() != 2 or pos.size(0) != q.size(0):
        shape = list(pos.shape)
        raise ValueError(f"'pos' must have shape [{q.size(0)}, D] (got {shape})")
    check_positions("pos", pos, *pos.shape)
    check_int("ball_size", ball_size, 1)
    if perm is not None:
        check_permutation("perm", perm, q.size(0))
    check_lengths("ball_len", ball_len, q.size(0), ball_size)
    check_devices(pos=pos, ball_len=ball_len, perm=perm)


class BallAttention(torch.nn.Module):
    r"""The ball multi-head self-attention layer from `"Erwin: A Tree-based Hierarchical
    Transformer for Large-scale Physical Systems" <https://arxiv.org/abs/2502.17019>`_.

    The position of every row relative to the mean of its ball is embedded and added to
    the features, then :func:`ball_attention` runs with one distance factor per head.

    Args:
        channels: The number of features of a row.
        heads: The number of heads; it divides :obj:`channels`.
        ball_size: The largest number of rows in a ball.
        dim: The number of coordinates :math:`D`.
        backend: The backend, see :func:`ball_attention`.
        distance: :obj:`"absolute"`, or :obj:`"relative"` to measure positions and
            distances in units of the ball's own extent (:attr:`Level.extent`), which
            helps if the balls of one level differ much in size.

    Shapes:
        - **x:** :math:`(N, C)`; **output:** :math:`(N, C)`, rows of the level.

    Raises:
        ValueError: If an argument is out of range or :obj:`heads` does not divide
            :obj:`channels`.

    Example:
        >>> from torch_geometric_erwin import Level
        >>> layer = BallAttention(channels=16, heads=2, ball_size=4)
        >>> pos, ball_len = torch.rand(6, 3), torch.tensor([4, 2])
        >>> layer(torch.rand(6, 16), Level.build(pos, ball_len, ball_size=4)).shape
        torch.Size([6, 16])
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        ball_size: int,
        dim: int = 3,
        backend: Optional[str] = None,
        distance: str = "absolute",
    ) -> None:
        super().__init__()
        channels = check_int("channels", channels, 1)
        heads = check_int("heads", heads, 1)
        ball_size = check_int("ball_size", ball_size, 1)
        dim = check_int("dim", dim, 1)
        if channels % heads != 0:
            raise ValueError(
                f"'heads' must divide the number of channels {channels} (got {heads})"
            )
        if backend is not None:  # the forward pass checks whether it can run
            check_choice("backend", backend, BACKENDS)
        check_choice("distance", distance, ("absolute", "relative"))
        self.channels = channels
        self.heads = heads
        self.ball_size = ball_size
        self.dim = dim
        self.backend = backend
        self.distance = distance
        self.lin_pos = Linear(dim, channels)
        self.lin_qkv = Linear(channels, 3 * channels)  # (q, k, v | head | channel)
        self.lin_out = Linear(channels, channels)
        self.sigma = Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        for linear in (self.lin_pos, self.lin_qkv, self.lin_out):
            reset_linear(linear)
        # The same distribution as in the reference implementation.
        torch.nn.init.normal_(self.sigma, mean=-1.0, std=0.01)

    def forward(
        self,
        x: Tensor,
        level: Level,
        return_attention_weights: Optional[bool] = None,
    ) -> Union[Tensor, tuple[Tensor, tuple[Tensor, Tensor]]]:
        r"""Runs the forward pass on the balls of a level, main or rotated.

        Args:
            x: The rows.
            level: Their level.
            return_attention_weights: Whether to return the pair of the output and
                :meth:`attention_weights`. The output has the same bits in both cases.
        """
        qkv, pos = self._project(x, level)
        weighted = return_attention_weights is not None and check_flag(
            "return_attention_weights", return_attention_weights
        )
        out = _attend(
            *(qkv, pos, level.ball_len, self.sigma, level.perm),
            *(level.ball_size, None, self.backend),
        )
        out = self.lin_out(out.flatten(1))
        return (out, self._weights(qkv, pos, level)) if weighted else out

    def attention_weights(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        r"""Returns the weights with which rows attend to the rows of their ball.

        They are computed by the reference implementation. Both results have an entry
        for every pair of rows in a ball, up to :math:`B` for every row, which is more
        memory than the layer itself takes.

        Args:
            x: The rows.
            level: Their level, main or rotated.

        Shapes:
            - **x:** :math:`(N, C)`; **output:** the pairs :math:`(2, E)` of the row
              that is attended to and the row that attends, as PyG's
              :obj:`"source_to_target"`, and the weights :math:`(E, H)` in float32 or
              float64. The weights of one target sum to one.

        Example:
            >>> layer = BallAttention(channels=16, heads=2, ball_size=2)
            >>> level = Level.build(torch.rand(3, 3), torch.tensor([2, 1]), ball_size=2)
            >>> edge_index, alpha = layer.attention_weights(torch.rand(3, 16), level)
            >>> edge_index.tolist(), alpha.shape
            ([[0, 1, 0, 1, 2], [0, 0, 1, 1, 2]], torch.Size([5, 2]))
        """
        return self._weights(*self._project(x, level), level)

    def _project(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        # Returns queries, keys and values, and the positions in the layer's unit.
        check_level("level", level)
        check_rows("x", x, level.num_rows, self.channels)
        check_dim("level.pos", level.pos, self.dim)
        check_rows("level.offset", level.offset, level.num_rows, self.dim)
        check_devices(x=x, level=level.offset)
        if level.ball_size > self.ball_size:
            raise ValueError(
                f"the level's balls have up to {level.ball_size} rows, the layer is "
                f"for 'ball_size={self.ball_size}'"
            )
        check_weight("x", x, self.sigma)
        relative = self.distance == "relative"
        # Offsets can replace positions, because the distances inside a ball are the
        # same.
        pos = level.relative_offset if relative else level.offset
        x = x + self.lin_pos(pos.to(x.dtype))
        # Queries, keys and values are passed as one tensor, so that a backend can also
        # write their gradients into one.
        return self.lin_qkv(x).unflatten(-1, (3, self.heads, -1)), pos

    def _weights(self, qkv: Tensor, pos: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        q, k, _, pos = in_tree_order(qkv, pos, level.perm)
        weight = dense_weights(
            *(q, k, pos, level.ball_len, self.sigma),
            *(level.ball_size, q.size(-1) ** -0.5),
        )
        width, perm = weight.size(-1), level.perm
        if perm is None:
            perm = torch.arange(level.num_rows, device=pos.device)
        row = to_dense(perm, level.ball_len, width)  # [K, B]
        is_row = row_mask(level.ball_len, width)
        is_pair = is_row[:, :, None] & is_row[:, None, :]  # [K, B, B]
        source = row[:, None, :].expand_as(is_pair)[is_pair]
        target = row[:, :, None].expand_as(is_pair)[is_pair]
        return torch.stack([source, target]), weight.movedim(1, -1)[is_pair]

    def __repr__(self) -> str:
        given = {"backend": self.backend, "distance": self.distance}
        usual = {"backend": None, "distance": "absolute"}
        more = "".join(f", {k}={v!r}" for k, v in given.items() if v != usual[k])
        return (
            f"{self.__class__.__name__}({self.channels}, heads={self.heads}, "
            f"ball_size={self.ball_size}{more})"
        )
