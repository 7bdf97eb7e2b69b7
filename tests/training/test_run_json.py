"""`run.json` records the git commit without running the program git."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from detris_peft.training.run_json import git_commit, write_run_json

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


def repository(folder, head="ref: refs/heads/main\n", **files):
    git = folder / ".git"
    git.mkdir(parents=True)
    (git / "HEAD").write_text(head)
    for name, content in files.items():
        file = git / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return folder


def test_the_commit_is_found_in_each_layout(tmp_path):
    branch = repository(tmp_path / "branch", refs__heads__main=f"{COMMIT}\n")
    (branch / "sub").mkdir()
    assert git_commit(branch / "sub") == COMMIT
    assert git_commit(repository(tmp_path / "detached", f"{COMMIT}\n")) == COMMIT
    packed = repository(tmp_path / "packed")
    (packed / ".git/packed-refs").write_text(f"# pack-refs\n{OTHER} refs/heads/other\n{COMMIT} refs/heads/main\n")
    assert git_commit(packed) == COMMIT
    worktree = tmp_path / "worktree"
    worktree.mkdir()
    private = branch / ".git/worktrees/worktree"
    private.mkdir(parents=True)
    (private / "HEAD").write_text("ref: refs/heads/topic\n")
    (private / "commondir").write_text("../..\n")
    (branch / ".git/refs/heads/topic").write_text(OTHER)
    (worktree / ".git").write_text(f"gitdir: {private}\n")
    assert git_commit(worktree) == OTHER


def test_without_a_commit_there_is_none(tmp_path):
    assert git_commit(repository(tmp_path / "empty")) is None
    assert git_commit(repository(tmp_path / "damaged", "ref: ../../secret\n")) is None
    assert git_commit(repository(tmp_path / "binary", "\0\x01\x02")) is None
    (tmp_path / "file").mkdir()
    (tmp_path / "file/.git").write_bytes(b"gitdir: \xff\xfe")
    assert git_commit(tmp_path / "file") is None


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_programs_that_a_repository_configures_are_not_run(tmp_path, monkeypatch):
    """Also with a file whose name is not UTF-8, which the output of git would contain."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    script = tmp_path / "program"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path / 'executed'}\n")
    script.chmod(0o755)
    subprocess.run(["git", "-C", str(folder), "config", "core.fsmonitor", str(script)], check=True)
    with open(os.path.join(os.fsencode(folder), b"\xff.txt"), "w"):
        pass
    monkeypatch.chdir(folder)
    write_run_json(tmp_path, {"seed": 0}, 1, resumed=False)
    assert not (tmp_path / "executed").exists()
    assert json.loads((tmp_path / "run.json").read_text())["git"] is None  # no commit yet
