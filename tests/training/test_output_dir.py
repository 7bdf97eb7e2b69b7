"""The output_dir: one run at a time, only folders of earlier runs are deleted, temporary files are removed."""

from __future__ import annotations

import json
import multiprocessing
import os

import pytest
from accelerate import Accelerator

from detris_peft.outputs import MARKER, mark_folder
from detris_peft.training import TrainingArguments
from detris_peft.training.output_dir import claimed_output_dir, lock

FORK = multiprocessing.get_context("fork")


def claim(folder, **options):
    return claimed_output_dir(Accelerator(cpu=True), TrainingArguments(output_dir=str(folder), **options))


def earlier_run(folder, marker=True):
    for name in ("checkpoints/step-00000001", "best", "last"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    (folder / "run.json").write_text(json.dumps({"options": {}, "versions": {}}))
    if marker:
        mark_folder(folder, "run")
    return folder


def hold(folder, locked, finished):
    """Lock a folder until `finished` can be read, with a child that inherits the open lock file, like a worker."""
    file = lock(folder)
    child = os.fork()
    if child:
        os.write(locked, b"1")
    os.read(finished, 1)
    file.close()
    os._exit(0)


@pytest.fixture
def holder(tmp_path):
    """A process that trains in `run`."""
    (tmp_path / "run").mkdir()
    (is_locked, locked), (finished, finish) = os.pipe(), os.pipe()
    process = FORK.Process(target=hold, args=(tmp_path / "run", locked, finished))
    process.start()
    assert os.read(is_locked, 1)
    yield process
    os.write(finish, b"11")  # for the process and its child
    process.join()
    for descriptor in (is_locked, locked, finished, finish):
        os.close(descriptor)


def test_a_second_run_in_a_folder_is_refused_until_the_first_one_dies(tmp_path, holder):
    message = rf"run: expected a folder in which no other run trains, .*process {holder.pid} on .*another output_dir"
    for options in ({}, {"resume": "latest"}, {"overwrite": True}):
        with pytest.raises(ValueError, match=message), claim(tmp_path / "run", **options):
            pass
    holder.kill()
    holder.join()
    with claim(tmp_path / "run"):
        pass


def test_a_finished_run_unlocks_its_folder(tmp_path):
    with claim(tmp_path / "run"):
        pass
    process = FORK.Process(target=lock, args=(tmp_path / "run",))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_on_a_file_system_without_locks_training_goes_on(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.lockf", refuse)
    lock(tmp_path).close()


@pytest.mark.parametrize("marker", [True, False], ids=["marked", "earlier-version"])
def test_an_earlier_run_is_replaced_only_with_overwrite(tmp_path, marker):
    folder = earlier_run(tmp_path / "run", marker)
    (folder / "notes.txt").write_text("mine")
    message = "got checkpoints, best, last of an earlier run; resume it with --resume latest, .*--overwrite"
    with pytest.raises(ValueError, match=message), claim(folder):
        pass
    with claim(folder, resume="latest"):
        assert (folder / "best/config.json").exists()
    with claim(folder, overwrite=True):
        assert not any((folder / name).exists() for name in ("checkpoints", "best", "last"))
        assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", [None, "checkpoint", "dataset"])
@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": "latest"}], ids=str)
def test_folders_of_something_else_are_never_deleted(tmp_path, options, kind):
    (tmp_path / "project/best").mkdir(parents=True)
    if kind:
        mark_folder(tmp_path / "project", kind)
    (tmp_path / "project/best/thesis.pdf").write_text("mine")
    (tmp_path / "project/run.json").write_text('{"name": "another program"}')
    message = "project: expected a folder without best, .*choose another output_dir"
    with pytest.raises(ValueError, match=message), claim(tmp_path / "project", **options):
        pass
    assert (tmp_path / "project/best/thesis.pdf").read_text() == "mine"
    assert (tmp_path / "project" / MARKER).exists() == bool(kind)


def test_only_a_folder_without_other_files_is_marked(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/data.csv").touch()
    for name, marked in (("new", True), ("shared", False)):
        with claim(tmp_path / name):
            assert (tmp_path / name / MARKER).exists() == marked


def test_temporary_files_of_a_dead_run_are_removed(tmp_path):
    folder = earlier_run(tmp_path / "run")
    for name in (".last.part/model", ".best.previous/model", "checkpoints/.step-00000002.part/model"):
        (folder / name).parent.mkdir()
        (folder / name).touch()
    with claim(folder, resume="latest"):
        pass
    left = {path.name for path in (*folder.iterdir(), *(folder / "checkpoints").iterdir())}
    assert left == {".lock", MARKER, "best", "checkpoints", "last", "run.json", "step-00000001"}


def test_overwrite_removes_a_link_and_not_what_it_points_to(tmp_path):
    folder = earlier_run(tmp_path / "run")
    (folder / "best").rename(tmp_path / "kept")
    (folder / "best").symlink_to(tmp_path / "kept")
    with claim(folder, overwrite=True):
        assert not (folder / "best").is_symlink()
    assert (tmp_path / "kept/config.json").exists()


def test_a_path_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for name, message in (("file", "expected a folder, got a file"), ("file/run", "expected a writable folder")):
        with pytest.raises(ValueError, match=f"{name}: {message}.*choose another output_dir"), claim(tmp_path / name):
            pass
