"""Two runs side by side."""

import subprocess
import sys
from pathlib import Path

from made import record, write

ROOT = Path(__file__).resolve().parents[2]


def compare(*paths):
    command = [sys.executable, "scripts/compare.py", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_what_differs_is_said_and_nothing_else(tmp_path):
    ours = write(tmp_path, record("neat", "one", 0, 0.9))
    theirs = record("lora", "one", 0, 0.7)
    theirs["config"] = theirs["config"] | {"method": {"rank": 4}}
    theirs = write(tmp_path, theirs)
    done = compare(ours["path"], theirs["path"])
    assert done.returncode == 0, done.stderr
    for part in (
        "config.method.rank: 8 | 4",
        "split_validation.accuracy: 0.9 | 0.7",
        "only B 0",
        "McNemar's exact test: p ",
    ):
        assert part in done.stdout
    assert "precision" not in done.stdout
    same = compare(ours["path"], ours["path"])
    assert same.stdout.count("the same") == 5
    assert "only A 0, only B 0" in same.stdout


def test_what_is_no_record_is_one_line(tmp_path):
    done = compare(tmp_path / "a.json", tmp_path / "b.json")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
