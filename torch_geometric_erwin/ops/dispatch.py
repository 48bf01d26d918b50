r"""Finding out whether native code can read the tensors of a call.

If it cannot, the call is computed by PyTorch's own operators, which support every kind
of tensor and every transform.
"""

from typing import Optional

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from torch_geometric_erwin.utils.onnx import is_onnx_export

# The last two replace plain tensors while a graph is traced.
_PLAIN = (Tensor, Parameter, FakeTensor, FunctionalTensor)
_DEVICES = ("cpu", "cuda")


def why_not(*tensors: Optional[Tensor]) -> str:
    r"""Says why native code cannot read tensors; empty if it can.

    Args:
        *tensors: The tensors of a call, or :obj:`None` for those that are left out.

    Example:
        >>> why_not(torch.rand(3), None)
        ''
        >>> why_not(torch.eye(3).to_sparse())
        'it reads dense tensors (got torch.sparse_coo)'
    """
    if is_transformed():
        return "it has no rule for function transforms and forward-mode derivatives"
    if is_onnx_export():
        return "ONNX has no such operator"
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in _PLAIN:
            return f"it reads plain tensors (got '{type(tensor).__name__}')"
        if tensor.layout != torch.strided:
            return f"it reads dense tensors (got {tensor.layout})"
        if tensor.device.type not in _DEVICES:
            return f"it runs on the CPU and CUDA devices (got {tensor.device.type})"
    return ""


def is_transformed() -> bool:
    r"""Whether :mod:`torch.func` or forward-mode differentiation is active.

    Example:
        >>> is_transformed()
        False
    """
    if torch.compiler.is_compiling():
        return False
    transforms = torch._C._are_functorch_transforms_active()
    return transforms or forward_ad._current_level >= 0


def is_eager(*tensors: Tensor) -> bool:
    r"""Whether the kernel of an operator may be called without PyTorch's dispatcher.

    The dispatcher takes longer than a small kernel. It may be left out if no mode,
    trace, transform or profiler observes the call, so that it would pass these tensors
    to the kernel unchanged.

    Args:
        *tensors: The tensors of the call.

    Example:
        >>> is_eager(torch.ones(2)), is_eager(Parameter(torch.ones(2)))
        (True, False)
    """
    return (
        not torch.compiler.is_compiling()
        and all(type(t) is Tensor and not t.is_neg() for t in tensors)
        and not is_transformed()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and not torch.jit.is_tracing()
        and not torch.autograd._profiler_enabled()
    )
