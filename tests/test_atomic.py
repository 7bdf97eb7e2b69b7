"""Atomic writes: a reader sees the old or the new content after any failure."""

from __future__ import annotations

import os

import pytest

from detris_peft.atomic import (
    atomic_update_dir,
    atomic_write_dir,
    manifest_problem,
    recover,
    remove_atomically,
    write_manifest,
    write_text,
)
from tests.helpers.kills import run_killed

CHANGES = ("rename", "replace", "unlink", "mkdir", "rmdir")  # a kill at a sync leaves the same files


def written(folder, text):
    with atomic_write_dir(folder) as staging:
        (staging / "deep").mkdir()
        (staging / "deep/file").write_text(text)
    return folder


def update(folder, text):
    with atomic_update_dir(folder) as staging:
        (staging / "deep").mkdir()
        (staging / "deep/file").write_text(text)
        (staging / "other").write_text(text)
    return folder


def test_a_folder_is_replaced_only_on_success(tmp_path):
    folder = written(tmp_path / "best", "old")
    (folder / "stale").touch()
    with pytest.raises(FileNotFoundError), atomic_write_dir(folder) as staging:
        (staging / "deep/file").write_text("part")  # fails: "deep" does not exist
    assert (folder / "deep/file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    written(folder, "new")
    assert [str(p.relative_to(folder)) for p in sorted(folder.rglob("*"))] == ["deep", "deep/file"]
    assert (folder / "deep/file").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("replace", [written, update], ids=["atomic_write_dir", "atomic_update_dir"])
def test_a_kill_at_any_operation_leaves_the_old_or_the_new_folder(tmp_path, replace):
    """`recover` completes or undoes the write, and removes the temporary folders."""
    seen, at = set(), 0
    killed = True
    while killed:
        at += 1
        folder = tmp_path / str(at) / "best"
        replace(folder, "old")
        killed = run_killed(lambda folder=folder: replace(folder, "new"), at, CHANGES)
        recover(folder)
        content = {file.read_text() for file in folder.rglob("*") if file.is_file()}
        assert content in ({"old"}, {"new"})
        seen |= content
        assert [p.name for p in folder.parent.iterdir()] == ["best"]
        assert {p.name for p in folder.iterdir()} == {"deep", "other"} if replace is update else {"deep"}
        replace(folder, "last")
        assert (folder / "deep/file").read_text() == "last"
    assert seen == {"old", "new"}
    assert at > 8


def test_a_kill_before_a_first_write_leaves_no_folder(tmp_path):
    assert run_killed(lambda: update(tmp_path / "best", "new"), at=4)
    assert not (tmp_path / "best").exists()
    update(tmp_path / "best", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_an_update_removes_the_named_files_and_keeps_others(tmp_path):
    folder = update(tmp_path / "best", "old")
    (folder / "foreign").write_text("kept")
    with atomic_update_dir(folder, removed=["deep/file"]) as staging:
        (staging / "other").write_text("new")
    assert {p.name: p.read_text() for p in folder.rglob("*") if p.is_file()} == {"foreign": "kept", "other": "new"}


def test_an_update_that_fails_changes_nothing(tmp_path):
    for folder in (update(tmp_path / "best", "old"), tmp_path / "missing"):
        with pytest.raises(FileNotFoundError), atomic_update_dir(folder, removed=["deep/file"]) as staging:
            (staging / "nowhere/file").write_text("part")
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == {
        "best/deep/file",
        "best/other",
    }


def test_temporary_folders_of_running_processes_are_kept(tmp_path):
    """Two writers of one folder do not share a temporary path, and neither removes that of the other."""
    with atomic_write_dir(tmp_path / "best") as one, atomic_write_dir(tmp_path / "best") as other:
        assert one != other
        recover(tmp_path / "best")
        (one / "file").write_text("one")
        (other / "file").write_text("other")
    assert (tmp_path / "best/file").read_text() == "one"  # the last one to finish
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_links_keep_pointing_to_the_replaced_folder(tmp_path):
    written(tmp_path / "disk/best", "old")
    (tmp_path / "best").symlink_to(tmp_path / "disk/best")
    written(tmp_path / "best", "new")
    assert (tmp_path / "best").is_symlink()
    assert (tmp_path / "disk/best/deep/file").read_text() == "new"


def test_recover_changes_nothing_in_an_intact_folder(tmp_path):
    folder = written(tmp_path / "best", "old")
    assert not recover(folder)
    assert not recover(tmp_path / "missing")
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_a_failed_write_keeps_the_old_text(tmp_path, monkeypatch):
    write_text(tmp_path / "metrics.json", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            write_text(tmp_path / "metrics.json", "new")
    assert (tmp_path / "metrics.json").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_manifest_detects_changed_and_missing_files(tmp_path):
    folder = written(tmp_path / "step", "content")
    write_manifest(folder)
    assert manifest_problem(folder) is None
    (folder / "deep/file").write_text("contend")
    assert manifest_problem(folder) == "deep/file does not match its checksum"
    (folder / "deep/file").write_text("cont")
    assert manifest_problem(folder) == "deep/file has 4 bytes, expected 7"
    (folder / "deep/file").unlink()
    assert manifest_problem(folder) == "deep/file is missing"
    (folder / "manifest.json").write_text('{"a')
    assert manifest_problem(folder).startswith("manifest.json cannot be read")


def test_remove_atomically_leaves_nothing(tmp_path):
    remove_atomically(written(tmp_path / "step", "content"))
    assert not list(tmp_path.iterdir())
