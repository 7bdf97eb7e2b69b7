"""Atomic writes: a reader sees the old or the new content after any failure."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from detris_peft.atomic import (
    atomic_update_dir,
    atomic_write_dir,
    recover,
    remove_atomically,
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


def test_the_root_folder_needs_no_recovery():
    """It has no name, and so no temporary siblings."""
    assert not recover(Path("/"))


def test_a_failed_write_keeps_the_old_text(tmp_path, monkeypatch):
    write_text(tmp_path / "metrics.json", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            write_text(tmp_path / "metrics.json", "new")
    assert (tmp_path / "metrics.json").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_remove_atomically_leaves_nothing(tmp_path):
    remove_atomically(written(tmp_path / "step", "content"))
    assert not list(tmp_path.iterdir())


# -- where a folder cannot be renamed ---------------------------------------------------------------------------------


@pytest.fixture(params=["mount point", "parent that cannot be written"])
def fixed_folder(request, tmp_path, monkeypatch):
    """A folder that can be written, but neither replaced nor given a neighbor."""
    folder = tmp_path / "volume"
    folder.mkdir()
    if request.param == "mount point":
        monkeypatch.setattr(Path, "is_mount", lambda self: self == folder)
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    mkdir, rename = os.mkdir, os.rename

    def checked_mkdir(path, *args, **kwargs):
        assert Path(path).parent != tmp_path or Path(path) == folder
        mkdir(path, *args, **kwargs)

    def checked_rename(source, target):
        assert folder != Path(source)
        assert folder in Path(target).parents
        rename(source, target)

    monkeypatch.setattr(os, "mkdir", checked_mkdir)
    monkeypatch.setattr(os, "rename", checked_rename)
    return folder


def test_a_folder_that_cannot_be_renamed_is_replaced_from_within(fixed_folder):
    written(fixed_folder, "old")
    (fixed_folder / "deep/older").write_text("old")
    written(fixed_folder, "new")
    assert [str(path.relative_to(fixed_folder)) for path in fixed_folder.rglob("*")] == ["deep", "deep/file"]
    assert (fixed_folder / "deep/file").read_text() == "new"


def test_a_folder_that_cannot_be_renamed_is_updated(fixed_folder):
    for text in ("old", "new"):
        update(fixed_folder, text)
        assert {path.name for path in fixed_folder.iterdir()} == {"deep", "other"}
        assert (fixed_folder / "deep/file").read_text() == text


def test_file_systems_that_cannot_flush_folders(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    for text in ("old", "new"):
        assert (update(written(tmp_path / "step", text), text) / "deep/file").read_text() == text


# -- a downloaded folder with an update that this package did not write -----------------------------------------------


def foreign_update(folder, removed="[]"):
    """A folder with a committed update of the file `deep/file`."""
    files = folder / ".detris_update" / "files" / "deep"
    files.mkdir(parents=True)
    (files / "file").write_text("foreign")
    (folder / ".detris_update" / "removed.json").write_text(removed)


@pytest.mark.parametrize("name", ["../mine", "{tmp_path}/mine", "deep/../../mine", "link/mine"])
def test_an_update_cannot_remove_files_elsewhere(tmp_path, name):
    (tmp_path / "mine").write_text("mine")
    foreign_update(tmp_path / "step", json.dumps([name.format(tmp_path=tmp_path)]))
    (tmp_path / "step/link").symlink_to("..")
    with pytest.raises(ValueError, match=r"mine: expected a path in .*step, got one that leads out of it; remove"):
        recover(tmp_path / "step")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("link", ["deep", ".detris_update", ".detris_update/files"])
def test_an_update_cannot_move_files_to_or_from_elsewhere(tmp_path, link):
    folder, elsewhere = tmp_path / "step", tmp_path / "elsewhere"
    foreign_update(folder)
    if link == "deep":
        elsewhere.mkdir()
    else:
        (folder / link).rename(elsewhere)
    (folder / link).symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    with pytest.raises(ValueError, match=r"expected a path in .*step, got one that leads out of it; remove the link"):
        recover(folder)
    assert sorted(elsewhere.rglob("*")) == before
    assert not (folder / "deep/file").exists()


def test_an_update_over_a_link_to_elsewhere_changes_nothing(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "step"
    folder.mkdir()
    (folder / "deep").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="deep/file: expected a path in"):
        update(folder, "new")
    assert [path.name for path in folder.iterdir()] == ["deep"]
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("removed", ["{", "[1]", "null", "[" * 100_000])
def test_a_damaged_update_is_one_line(tmp_path, removed):
    foreign_update(tmp_path / "step", removed)
    with pytest.raises(ValueError, match=r"removed.json: expected a list of file names, got .*; remove .*update") as e:
        recover(tmp_path / "step")
    assert "\n" not in str(e.value)
