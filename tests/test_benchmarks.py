"""The benchmarks: rows, the checkout of an earlier revision, tables, and one run of each with a tiny model."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
TINY = ["--preset", "tiny", "--image_size", "64", "--device", "cpu"]


@pytest.fixture(scope="module")
def measure():
    sys.path.insert(0, str(FOLDER))
    yield import_module("measure")
    sys.path.remove(str(FOLDER))


def git(folder: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "core.hooksPath=/dev/null")
    command = ["git", "-C", str(folder), *settings, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def repository(tmp_path):
    """A repository with two commits of one file."""
    git(tmp_path, "init", "--quiet")
    for content in ("old", "new"):
        Path(tmp_path, "file.txt").write_text(content)
        git(tmp_path, "add", "file.txt")
        git(tmp_path, "commit", "--quiet", "-m", content)
    return tmp_path


def test_worktree_of_an_earlier_revision_is_removed_after_an_error(measure, repository):
    seen = []

    def use_and_fail() -> None:
        with measure.worktree("HEAD~1", repository) as checkout:
            seen.extend([checkout, Path(checkout, "file.txt").read_text()])
            raise RuntimeError("while measuring")

    with pytest.raises(RuntimeError, match="while measuring"):
        use_and_fail()
    checkout, content = seen
    assert content == "old"
    assert Path(repository, "file.txt").read_text() == "new"
    assert not checkout.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_unknown_revision_is_one_line_and_leaves_nothing(measure, repository):
    with pytest.raises(SystemExit, match="unknown") as error, measure.worktree("unknown", repository):
        pass
    assert "\n" not in str(error.value)
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_no_revision_is_no_checkout(measure):
    with measure.worktree(None) as checkout:
        assert checkout is None


def test_rows_in_bf16_are_left_out_where_they_are_emulated(measure, monkeypatch, capsys):
    rows = {"a": False, "b": True, "c": False}
    parser = measure.make_parser("Test", rows)

    def chosen(*options: str) -> list[str]:
        return measure.choose_rows(parser.parse_args(["--device", "cpu", *options]), rows, ["a", "b"])

    monkeypatch.setattr(measure, "computes_bf16", lambda device: False)
    assert chosen() == ["a", "c"]
    assert "Rows in bf16 are left out" in capsys.readouterr().out
    assert chosen("--bf16", "yes", "--baseline", "HEAD") == ["a", "b"]
    assert chosen("--only", "b") == ["b"]
    monkeypatch.setattr(measure, "computes_bf16", lambda device: True)
    assert chosen() == ["a", "b", "c"]
    assert chosen("--bf16", "no") == ["a", "c"]
    with pytest.raises(SystemExit):
        chosen("--only", "unknown")


def test_tables_are_markdown_with_three_digits(measure, capsys):
    measure.print_table(("", "s"), [("a", 1.23456), ("b", float("nan")), ("c", 12345.6), ("d", 1.0)])
    assert capsys.readouterr().out.splitlines() == [
        "|  | s |",
        "|---|---|",
        "| a | 1.23 |",
        "| b |  |",
        "| c | 12346 |",
        "| d | 1.00 |",
    ]


def test_baseline_ratios_are_old_by_new(measure, capsys):
    results = {
        ("a", False): {"seconds": 2.0, "processor_seconds": 4.0, "peak_gib": 1.0},
        ("a", True): {"seconds": 3.0, "processor_seconds": 5.0, "peak_gib": 1.5},
    }
    measure.print_baseline(["a"], results, "old")
    assert capsys.readouterr().out.splitlines()[-1] == "| a | 3.00 | 2.00 | 1.50 | 1.25 | 1.50 | 1.00 | 1.50 |"


def run(script: str, *options: str) -> list[str]:
    """Run a benchmark; return the rows of its tables without their headers."""
    done = subprocess.run([sys.executable, str(FOLDER / script), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    headers = {i + step for i, line in enumerate(lines) if line.startswith("|---") for step in (-1, 0)}
    return [line for i, line in enumerate(lines) if line.startswith("|") and i not in headers]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "rows"),
    [
        ("inference.py", [*TINY, "--only", "one image", "JPEG and sentence to mask", "projector"], 3),
        ("inference.py", [*TINY, "--only", "batch 4, bf16", "8 sentences on one image", "decoder"], 3),
        ("inference.py", [*TINY, "--baseline", "HEAD", "--only", "one image"], 1),
        ("train_step.py", [*TINY, "--only", "float32", "bfloat16", "float32 checkpointing"], 3),
        ("train_step.py", [*TINY, "--baseline", "HEAD", "--only", "float32"], 1),
        ("startup.py", [], 10),
    ],
)
def test_each_benchmark_prints_its_rows(script, options, rows):
    assert len(run(script, "--repeats", "1", *options)) == rows


@pytest.mark.slow
def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "curves.png"
    assert len(run("inference.py", *TINY, "--curves", str(file))) == 14
    assert file.stat().st_size > 10_000
