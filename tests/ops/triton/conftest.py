import pytest
import torch


@pytest.fixture
def fill():
    """Fills new memory with NaN, so that missing writes are seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
