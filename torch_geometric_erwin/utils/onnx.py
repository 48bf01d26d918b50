r"""Whether a model is being exported to ONNX."""

import torch


def is_onnx_export() -> bool:
    r"""Whether :func:`torch.onnx.export` traces the call, for which only PyTorch's own
    operators exist.

    Example:
        >>> is_onnx_export()
        False
    """
    # The second function imports modules, so it must not be asked in eager mode.
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
