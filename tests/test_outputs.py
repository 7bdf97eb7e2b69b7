"""What may be written and replaced."""

from __future__ import annotations

import json

import pytest

from detris_peft.outputs import check_output_file, check_output_folder, folder_kind, is_marked, mark_folder


def write(file, content=""):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def test_a_missing_file_may_be_written_and_an_existing_one_with_overwrite(tmp_path):
    check_output_file(tmp_path / "new/folder/file.json", overwrite=False)
    file = write(tmp_path / "file.json")
    with pytest.raises(ValueError, match=r"--report .*file.json: .*add --overwrite"):
        check_output_file(file, overwrite=False, option="--report")
    check_output_file(file, overwrite=True)
    assert [*tmp_path.iterdir()] == [file]


def test_an_input_is_never_replaced(tmp_path):
    file = write(tmp_path / "file.json")
    (tmp_path / "link.json").symlink_to(file)
    for output in (file, tmp_path / "link.json", tmp_path / "." / "file.json"):
        with pytest.raises(ValueError, match="another file than the input"):
            check_output_file(output, overwrite=True, inputs=("missing", file))


def test_a_device_is_not_replaced():
    with pytest.raises(ValueError, match="got a device"):
        check_output_file("/dev/null", overwrite=True)


def test_a_broken_link_is_an_existing_output(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "none")
    with pytest.raises(ValueError, match="--overwrite"):
        check_output_file(tmp_path / "link", overwrite=False)
    with pytest.raises(ValueError, match="got a file"):
        check_output_folder(tmp_path / "link", overwrite=True)


def test_a_path_below_a_file_is_refused(tmp_path):
    write(tmp_path / "file")
    for check in (check_output_file, check_output_folder):
        with pytest.raises(ValueError, match=r"file, which is a file; change"):
            check(tmp_path / "file/x/y", True)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match="writable folder"):
        check_output_file(tmp_path / "x", overwrite=False)
    with pytest.raises(ValueError, match="writable folder"):
        check_output_folder(tmp_path / "x/y", overwrite=False)


def test_only_marked_folders_are_replaced(tmp_path):
    folder = tmp_path / "folder"
    check_output_folder(folder, overwrite=False)
    folder.mkdir()
    check_output_folder(folder, overwrite=False)
    write(folder / "notes.txt")
    with pytest.raises(ValueError, match="got a folder with other files; choose another"):
        check_output_folder(folder, overwrite=True)
    mark_folder(folder, "run")
    with pytest.raises(ValueError, match="add --overwrite, or continue with --resume"):
        check_output_folder(folder, overwrite=False, otherwise="continue with --resume")
    check_output_folder(folder, overwrite=True)
    check_output_folder(folder, overwrite=True, kind="run")
    with pytest.raises(ValueError, match="of a checkpoint, got that of a run"):
        check_output_folder(folder, overwrite=True, kind="checkpoint")


def test_folders_of_earlier_versions_are_recognized_by_their_content(tmp_path):
    write(tmp_path / "checkpoint/head.safetensors")
    write(tmp_path / "checkpoint/config.json", json.dumps({"model_type": "detris"}))
    write(tmp_path / "run/run.json", "{}")
    write(tmp_path / "run/last/config.json", "{}")
    write(tmp_path / "dataset/README.md", "Images and masks. Written by `detris data convert`.")
    write(tmp_path / "dataset/data/train-00000-of-00001.parquet")
    for kind in ("checkpoint", "run", "dataset"):
        assert folder_kind(tmp_path / kind) == kind
    for name in ("config.json", "model.safetensors"):
        write(tmp_path / "x-backbones/dino" / name)
    assert folder_kind(tmp_path / "x-backbones/dino") == "backbone"
    assert folder_kind(tmp_path / "none") is None


@pytest.mark.parametrize("config", ['{"model_type": "bert"}', "[1]", "{", '{"model_type": ' + "[" * 100_000])
def test_other_models_are_not_ours(tmp_path, config):
    write(tmp_path / "head.safetensors")
    write(tmp_path / "config.json", config)
    assert not is_marked(tmp_path)
