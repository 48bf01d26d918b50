import pytest

from torch_geometric_erwin import _native


@pytest.fixture(params=[*_native.CPU_ISAS][: _native.library().erwin_cpu_isa() + 1])
def isa(request, monkeypatch):
    """Runs the test for every instruction set of the build and the machine."""
    level = "default" if request.param == "baseline" else request.param
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", level)
    return request.param
