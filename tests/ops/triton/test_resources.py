"""Resources that the kernels use, as reported by the compiler; no GPU is needed."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from tools.registers import CAPABILITIES, Launch, tile_of, usage

SMALLEST_SHARED_MEMORY = 99 * 1024  # bytes for a program, on capability 8.6 and 8.9
# A usual size, for every kernel and precision. All sizes would take minutes:
# `python -m tools.registers`.
LAUNCHES = [
    ("forward", "bf16", 32, 256),
    ("keys", "bf16", 32, 256),
    ("keys", "bf16", 32, 256, True),
    ("queries", "bf16", 32, 256, True),
    ("forward", "fp16", 128, 64),
    ("forward", "fp32", 32, 256),
    ("keys", "fp32", 32, 256),
    ("queries", "fp32", 64, 256),
    ("keys", "tf32", 32, 256),
]


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
@pytest.mark.parametrize("about", LAUNCHES, ids=str)
@pytest.mark.parametrize("permuted", [False, True])
def test_next_to_nothing_is_spilled(about, capability, permuted):
    launch = Launch(*about[:4], capability, *about[4:], permuted=permuted)
    registers, spilled, shared = usage(launch, tile_of(launch))
    # The assembler spills one or two numbers if more warps fit then.
    assert spilled <= 16
    assert 0 < registers <= 255
    assert 0 < shared <= SMALLEST_SHARED_MEMORY


def test_a_spill_shows():
    launch = Launch("keys", "bf16", 128, 256, (9, 0))
    tile = tile_of(launch)._replace(queries=64, keys=128)
    assert usage(launch, tile).spilled > 16
