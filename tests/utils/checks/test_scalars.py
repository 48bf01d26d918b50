import pytest

from torch_geometric_erwin.utils.checks import check_choice


@pytest.mark.parametrize("value", ["c", "", None, 1, ["a"]])
def test_bad_choice(value):
    check_choice("kind", "b", {"a": 0, "b": 1})
    with pytest.raises(ValueError, match=r"'kind' must be one of \['a', 'b'\] \(got "):
        check_choice("kind", value, {"a": 0, "b": 1})
