"""What a result says of the code that it was measured with."""

import shutil
import subprocess

import pytest

from benchmark.machine import commit


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_result_does_not_make_the_next_one_dirty(tmp_path):
    def git(*command):
        author = ("-c", "user.name=name", "-c", "user.email=name@example.org")
        result = subprocess.run(
            ["git", *author, *command], cwd=tmp_path, check=True, capture_output=True
        )
        return result.stdout.decode().strip()

    assert commit(tmp_path) == "unknown"
    results = tmp_path / "benchmark" / "results"
    results.mkdir(parents=True)
    code, result = tmp_path / "benchmark" / "code.py", results / "result.json"
    code.write_text("1")
    result.write_text("1")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    clean = git("rev-parse", "HEAD")[:10]
    assert commit(code.parent) == clean
    result.write_text("2")
    (tmp_path / "untracked").write_text("1")
    assert commit(code.parent) == clean
    code.write_text("2")
    assert commit(code.parent) == f"{clean}-dirty"
