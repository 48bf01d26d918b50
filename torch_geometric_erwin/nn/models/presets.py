r"""The published sizes of Erwin, by name."""

from typing import Any

from torch_geometric_erwin.utils.checks import check_choice

# From the training configurations published with arXiv 2502.17019: the arguments that
# the sizes of a task share. The widths of level 0 are in PRESETS.
_COSMOLOGY = {
    "ball_sizes": [256] * 4,
    "strides": [2] * 3,
    "enc_depths": [2, 2, 6, 2],
    "enc_heads": [2, 4, 8, 16],
    "dec_depths": [2, 2, 2],
    "dec_heads": [4, 4, 8],
    "rotate": 0.0,
}
_DYNAMICS = {
    "ball_sizes": [128, 128, 128, 64, 32],
    "strides": [2] * 4,
    "enc_depths": [2, 2, 2, 6, 2],
    "enc_heads": [2, 4, 8, 16, 32],
    "dec_depths": [2] * 4,
    "dec_heads": [4, 4, 8, 16],
}
_FLOW = {**_DYNAMICS, "ball_sizes": [256, 256, 256, 128, 128], "dim": 2}
_FLAT = {
    "ball_sizes": [256, 256],
    "strides": [1],
    "enc_depths": [6, 6],
    "enc_heads": 8,
    "dec_depths": [6],
    "dec_heads": 8,
}
_SIZES = ("small", "medium", "large")


def _family(
    name: str, shared: dict[str, Any], widths: tuple[int, ...]
) -> dict[str, dict[str, Any]]:
    family = {}
    for size, width in zip(_SIZES, widths, strict=False):
        hidden = [width]
        for stride in shared["strides"]:
            hidden.append(hidden[-1] * (2 if stride > 1 else 1))
        family[f"{name}-{size}"] = {"hidden_channels": hidden, **shared}
    return family


PRESETS: dict[str, dict[str, Any]] = {
    **_family("cosmology", _COSMOLOGY, (32, 64, 128)),
    **_family("molecular-dynamics", _DYNAMICS, (16, 32, 64)),
    **_family("eagle", _FLOW, (16, 32, 64)),
    **_family("shapenet-car", _FLAT, (64, 128, 256)),
    "pde": {"hidden_channels": [64, 64], **_FLAT, "dim": 2},
}


def preset(name: str) -> dict[str, Any]:
    r"""Returns the arguments of :class:`~torch_geometric_erwin.nn.Erwin` by name.

    Args:
        name: The task and, if it has several, the size.

    Raises:
        ValueError: If there is no preset of that name.

    Example:
        >>> preset("molecular-dynamics-small")["hidden_channels"]
        [16, 32, 64, 128, 256]
    """
    check_choice("name", name, PRESETS)
    return PRESETS[name]
