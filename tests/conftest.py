from collections.abc import Iterator

import emulated
import pytest
from hypothesis import settings

# The same examples in every run, so that a failure in CI can be repeated.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


@pytest.fixture(scope="module")
def emulator() -> Iterator[None]:
    with emulated.calls():
        yield
