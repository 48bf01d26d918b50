import pytest

from torch_geometric_erwin.utils.checks import per_level


def test_per_level():
    assert per_level("sizes", 8, 3) == (8, 8, 8)
    assert per_level("sizes", 8, 0) == ()
    assert per_level("sizes", [8, 4], 2) == (8, 4)
    assert per_level("sizes", range(1, 4), 3) == (1, 2, 3)
    assert per_level("depths", [0, 2], 2, minimum=0) == (0, 2)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, r"'sizes' must be at least 1 \(got 0\)"),
        ([4, -1], ValueError, r"'sizes' must be at least 1 \(got -1\)"),
        ([4], ValueError, r"one value or 2 \(got 1: \[4\]\)"),
        ([4, 4, 4], ValueError, r"one value or 2 \(got 3: \[4, 4, 4\]\)"),
        ([4, 2.0], TypeError, r"'sizes' must hold integers \(got 2.0\)"),
        (2.5, TypeError, r"'sizes' must hold integers \(got 2.5\)"),
        ([True, 4], TypeError, r"'sizes' must hold integers \(got True\)"),
        ("88", TypeError, r"'sizes' must hold integers \(got '88'\)"),
        (None, TypeError, r"'sizes' must hold integers \(got None\)"),
    ],
)
def test_bad_value_per_level(value, error, message):
    with pytest.raises(error, match=message):
        per_level("sizes", value, 2)
