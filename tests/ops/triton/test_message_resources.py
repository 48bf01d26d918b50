"""Resources that the message-passing kernels use, from the compiler; needs no GPU."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from tools.message_registers import KERNELS, usage
from tools.registers import CAPABILITIES
from torch_geometric_erwin.ops.triton.message import Tile


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("channels", [64, 96])
def test_no_register_is_spilled(kernel, channels, capability):
    registers, spilled, shared = usage(kernel, channels, capability)
    assert spilled == 0
    # With up to 128 registers, sixteen warps fit on a multiprocessor.
    assert 0 < registers <= 128
    assert 0 <= shared <= 48 * 1024


def test_a_spill_shows():
    assert usage("target", 64, (9, 0), tile=Tile(16, 4, 4)).spilled > 0
