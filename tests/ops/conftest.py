import pytest

from torch_geometric_erwin import _native


@pytest.fixture(params=[*_native.CPU_ISAS][: _native.library().erwin_cpu_isa() + 1])
def isa(request, monkeypatch):
    """Every instruction set that the build and the machine have."""
    monkeypatch.setenv("ERWIN_CPU_ISA", request.param)
    return request.param
