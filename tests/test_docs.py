"""Code that the guides show runs as it stands, one block after the other."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", ["mixers.md"])
def test_blocks_run(name):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)
    assert len(blocks) >= 3
    scope = {}
    for block in blocks:
        exec(compile(block, name, "exec"), scope)
    assert scope["out"].shape == (100, 16)
