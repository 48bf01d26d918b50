import pytest

from torch_geometric_erwin.utils.checks import made_by

WHAT = "a number of channels"


def takes_more(channels, eps=1.0, *, scale=2.0):
    return channels, eps, scale


def takes_any(channels, heads, **kwargs):
    return channels, heads, kwargs


def test_arguments_arrive():
    assert made_by("norm", takes_more, WHAT, 8, scale=3.0) == (8, 1.0, 3.0)
    assert made_by("norm", takes_any, WHAT, 8, 2, eps=1.0) == (8, 2, {"eps": 1.0})
    assert made_by("norm", dict, WHAT, eps=1.0) == {"eps": 1.0}  # has no signature


@pytest.mark.parametrize(
    ("make", "args", "message"),
    [
        (takes_more, (8,), r"'norm' takes no 'p', .* \(takes_more takes eps, scale\)"),
        (lambda channels: 8, (8,), r"'norm' takes no 'p', .*<lambda> takes no more"),
        # What is missing here is not the further argument.
        (takes_any, (8,), "'norm' must take a number of channels .*takes_any"),
    ],
)
def test_the_message_names_what_is_wrong(make, args, message):
    with pytest.raises(TypeError, match=message):
        made_by("norm", make, WHAT, *args, p=0.5)


def test_another_number_of_arguments():
    for args in ((), (1, 2, 3)):
        with pytest.raises(TypeError, match="'norm' must take a number of channels"):
            made_by("norm", takes_more, WHAT, *args)
