"""Manifests: changed and missing files are found."""

from __future__ import annotations

import os

from detris_peft.manifest import manifest_problem, write_manifest


def test_a_manifest_detects_changed_and_missing_files(tmp_path):
    folder = tmp_path / "step"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/file").write_text("content")
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


def test_a_manifest_that_is_not_a_regular_file_is_not_read(tmp_path):
    """Reading a named pipe would wait forever, and some devices never end."""
    os.mkfifo(tmp_path / "manifest.json")
    assert manifest_problem(tmp_path) == "manifest.json is not a file of at most 16 MiB"
