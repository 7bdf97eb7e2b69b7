"""Atomic writes: a reader sees the old or the new content after any failure."""

from __future__ import annotations

import os

import pytest

from detris_peft import atomic
from detris_peft.atomic import (
    atomic_write_dir,
    manifest_problem,
    recover,
    remove_atomically,
    write_manifest,
    write_text,
)


def written(folder, text):
    with atomic_write_dir(folder) as staging:
        (staging / "deep").mkdir()
        (staging / "deep/file").write_text(text)
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


@pytest.mark.parametrize("moment", range(1, 6))
def test_recover_restores_the_old_or_the_new_folder_after_any_failure(tmp_path, monkeypatch, moment):
    """Renaming, removing or syncing fails at each moment in turn."""
    folder = written(tmp_path / "best", "old")
    calls = []

    def failing(real):
        def call(*args, **kwargs):
            calls.append(args)
            if len(calls) >= moment:
                raise KeyboardInterrupt  # like a kill: no clean-up follows
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((atomic.Path, "rename"), (atomic.shutil, "rmtree"), (atomic.os, "fsync")):
            patch.setattr(owner, name, failing(getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            written(folder, "new")
    recover(folder)
    assert (folder / "deep/file").read_text() in ("old", "new")
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
