import math
import sys
from collections.abc import Iterable, Sequence
from numbers import Real

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.data import BaseData

from torch_geometric_erwin.utils.checks import (
    check_finite,
    check_floating,
    check_instance,
    check_int,
    check_tensor,
)

#: The most cells along a side of a mesh: cells are counted by 64-bit integers.
MAX_MESH = 2**20

#: The side of the box of :class:`CosmologyLPT` in the units of its positions.
UNIT_BOX = math.sqrt(12)


def check_positive(name: str, value: float) -> None:
    r"""Checks an argument that is a positive, finite number.

    Args:
        name: The argument's name, for messages.
        value: Its value.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> check_positive("box_size", 250.0)
    """
    if not 0 < _number(value) < math.inf:
        raise ValueError(f"'{name}' must be positive and finite (got {value!r})")


def _number(value: object) -> float:
    # Returns the number as a float: NaN if it is none, infinity if it is too large.
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def linear_velocity(
    pos: Tensor,
    smoothing: float,
    amplitude: float = 1.0,
    *,
    box_size: float = UNIT_BOX,
    mesh_size: int = 64,
) -> Tensor:
    r"""Reconstructs the velocities of the points of a periodic box from their
    positions by linear theory, as in the `"The Large-Scale Structure of the
    Universe" <https://ui.adsabs.harvard.edu/abs/1980lssu.book.....P>`_ book: the
    physics baseline of :class:`CosmologyLPT`.

    The velocity is the curl-free field with :math:`\nabla \cdot \mathbf{v} = -A
    \, \delta`, where :math:`\delta` is the contrast of the number density of the
    points on a mesh (cloud-in-cell assignment, its window divided out), smoothed
    with a Gaussian. In linear theory :math:`A = a H f / b` for points of the bias
    :math:`b`.

    Args:
        pos (torch.Tensor): The positions, in any unit and from any origin.
        smoothing (float): Standard deviation of the Gaussian, in the unit of
            :obj:`pos`.
        amplitude (float, optional): :math:`A`, in the unit of velocity per unit
            of :obj:`pos`. (default: :obj:`1.0`)
        box_size (float, optional): Side of the box in the unit of :obj:`pos`. The
            default is that of the standardised positions of
            :class:`CosmologyLPT`. (default: :math:`\sqrt{12}`)
        mesh_size (int, optional): Number of mesh cells along a side.
            (default: :obj:`64`)

    Shapes:
        - **pos:** :math:`(N, 3)`, floating point
        - **output:** :math:`(N, 3)`, velocities, in the dtype of :obj:`pos`

    Raises:
        TypeError: If :obj:`pos` is not a tensor, or :obj:`mesh_size` not an integer.
        ValueError: If :obj:`pos` is not of shape :math:`(N, 3)`, floating point and
            finite, if it lies so many boxes away that no place in the box is left, if
            a size is not positive, or :obj:`amplitude` not a finite number.

    Example:
        >>> pos = torch.rand(100, 3)
        >>> linear_velocity(pos, smoothing=0.1, box_size=1.0).shape
        torch.Size([100, 3])
    """
    check_tensor("pos", pos)
    if pos.is_meta:
        raise ValueError("'pos' is on meta, it must be where it has values")
    if pos.is_floating_point():
        check_floating("pos", pos)
    if pos.dim() != 2 or pos.size(1) != 3 or not pos.is_floating_point():
        raise ValueError(
            f"'pos' must be a floating-point tensor of shape [N, 3] "
            f"(got {pos.dtype} of shape {list(pos.shape)})"
        )
    check_finite(pos)
    mesh_size = check_int("mesh_size", mesh_size, 1, maximum=MAX_MESH)
    check_positive("smoothing", smoothing)
    check_positive("box_size", box_size)
    if not math.isfinite(_number(amplitude)):
        raise ValueError(f"'amplitude' must be a finite number (got {amplitude!r})")

    # Each point contributes to the 8 mesh points around it with these weights [N, 8].
    cells = pos.double().contiguous() * (mesh_size / box_size)
    if not bool((cells.abs() < 2**52).all()):
        raise ValueError(
            f"'pos' lies too far from the origin (up to {float(pos.abs().max())}) for "
            f"a box of 'box_size' {box_size}: one of them must be of another unit"
        )
    corner = cells.floor()
    shift = torch.cartesian_prod(*[torch.arange(2, device=pos.device)] * 3)
    weight = 1 - (cells - corner)[:, None, :] - shift
    weight = weight.abs().prod(dim=-1)
    index = (corner.long()[:, None, :] + shift) % mesh_size
    index = (index[..., 0] * mesh_size + index[..., 1]) * mesh_size + index[..., 2]

    count = weight.new_zeros(mesh_size**3)
    count.index_add_(0, index.view(-1), weight.view(-1))
    contrast = count.view((mesh_size,) * 3) * (mesh_size**3 / max(len(pos), 1))

    # Waves per cell, and wavenumbers, each [M, M, M // 2 + 1].
    full = torch.fft.fftfreq(mesh_size, dtype=count.dtype, device=pos.device)
    half = torch.fft.rfftfreq(mesh_size, dtype=count.dtype, device=pos.device)
    n = torch.meshgrid(full, full, half, indexing="ij")
    k = [2 * math.pi * mesh_size / box_size * component for component in n]
    k2 = k[0] ** 2 + k[1] ** 2 + k[2] ** 2

    # The window of the assignment is divided out twice, because velocities are read
    # from the mesh with the same window.
    window = (torch.sinc(n[0]) * torch.sinc(n[1]) * torch.sinc(n[2])) ** 2
    modes = torch.fft.rfftn(contrast) / window**2
    square = min(smoothing * smoothing, sys.float_info.max)  # not infinity: 0 * inf
    modes *= amplitude * torch.exp(-0.5 * square * k2)
    modes /= k2.masked_fill(k2 == 0, math.inf)

    velocity = torch.empty_like(cells)
    for axis in range(3):
        # The gradient of a Nyquist mode, half a wave per cell, is not real: it is left
        # out.
        gradient = 1j * k[axis].masked_fill(n[axis].abs() == 0.5, 0)
        field = torch.fft.irfftn(gradient * modes, s=contrast.shape)
        velocity[:, axis] = (field.view(-1)[index] * weight).sum(dim=1)
    return velocity.to(pos.dtype)


def fit_linear_velocity(
    clouds: Iterable[Data],
    smoothings: Sequence[float] | None = None,
    *,
    box_size: float = UNIT_BOX,
    mesh_size: int = 64,
) -> tuple[float, float]:
    r"""Chooses the smoothing and the amplitude of :func:`linear_velocity` that
    have the least squared error on the given clouds.

    Args:
        clouds (iterable of Data): Clouds with the positions :obj:`pos` and the
            velocities :obj:`y`; training ones, for a fair baseline.
        smoothings (list[float], optional): The smoothings to try, in the unit of
            :obj:`pos`. If :obj:`None`, ten from 0.3 to 1.5 mean separations of
            the points of the first cloud, in a geometric series.
            (default: :obj:`None`)
        box_size (float, optional): Side of the box in the unit of :obj:`pos`.
            (default: :math:`\sqrt{12}`)
        mesh_size (int, optional): Number of mesh cells along a side.
            (default: :obj:`64`)

    Returns:
        The smoothing and its least-squares amplitude.

    Raises:
        TypeError: If an entry of :obj:`clouds` is not data.
        ValueError: If there is no cloud or no smoothing, if positions or velocities
            are malformed or not finite, or if no point of any cloud moves.

    Example:
        >>> cloud = Data(pos=torch.rand(100, 3), y=torch.randn(100, 3))
        >>> mesh = {"box_size": 1.0, "mesh_size": 32}
        >>> smoothing, amplitude = fit_linear_velocity([cloud], **mesh)
        >>> prediction = linear_velocity(cloud.pos, smoothing, amplitude, **mesh)
    """
    one = isinstance(clouds, (str, bytes, dict, BaseData))
    if one or not isinstance(clouds, Iterable):
        kind = type(clouds).__name__
        raise TypeError(f"'clouds' must be a list of Data (got '{kind}')")
    clouds = list(clouds)
    if not clouds:
        raise ValueError("'clouds' is empty; at least one cloud is needed for a fit")
    for i, data in enumerate(clouds):
        _check_velocities(i, data)
    check_positive("box_size", box_size)
    if smoothings is None:
        separation = box_size / max(clouds[0].num_nodes, 1) ** (1 / 3)
        smoothings = [0.3 * separation * 5 ** (i / 9) for i in range(10)]
    check_instance("smoothings", smoothings, Sequence, "a list of numbers")
    for smoothing in smoothings:
        check_positive("smoothings", smoothing)
    if len(smoothings) == 0:
        raise ValueError("'smoothings' is empty; at least one is needed for a fit")

    best = (-math.inf, 0.0, 0.0)
    for smoothing in smoothings:
        product = square = 0.0
        for data in clouds:
            unit = linear_velocity(
                data.pos, smoothing, box_size=box_size, mesh_size=mesh_size
            )
            unit, y = unit.double(), data.y.double().contiguous()
            product += float((unit * y).sum())
            square += float((unit * unit).sum())
        # The amplitude product/square explains product^2/square of the sum of
        # the squared velocities.
        if square > 0:
            ratio = product / square
            best = max(best, (product * ratio, smoothing, ratio))
    if best[0] == -math.inf:
        raise ValueError(
            "linear theory moves no point of 'clouds' with any of 'smoothings'; there "
            "is no amplitude to fit"
        )
    return best[1], best[2]


def _check_velocities(index: int, data: Data) -> None:
    if not isinstance(data, Data):
        kind = type(data).__name__
        raise TypeError(f"'clouds' must hold Data (entry {index} is a '{kind}')")
    pos, y = data.pos, data.y
    for name, value in (("pos", pos), ("y", y)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(
                f"'{name}' of cloud {index} must be a floating-point tensor (got "
                f"{value.dtype if isinstance(value, Tensor) else value})"
            )
        check_tensor(f"{name} of cloud {index}", value)
        if value.is_meta:
            raise ValueError(f"'{name}' of cloud {index} must have values (got meta)")
    if y.shape != pos.shape:
        raise ValueError(
            f"'y' of cloud {index} must have the shape {list(pos.shape)} of 'pos' (got "
            f"{list(y.shape)})"
        )
    if not bool(torch.isfinite(y).all()):
        raise ValueError(f"'y' of cloud {index} must be finite")
