"""`detris predict`: what it reads, what it writes, and what a kill or a full disk leaves."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from detris_peft import DetrisProcessor
from detris_peft.cli import checkpoint_options, main
from detris_peft.prediction.single_output import write_prediction
from tests.helpers import toy_run
from tests.helpers.kills import run_killed

SENTENCE = "the large red circle on the left of the small blue square above the big green triangle over there"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny checkpoint with its processor, and an image."""
    root = toy_run.write_toys(tmp_path_factory.mktemp("predict"))
    model = toy_run.load_model(root)
    toy_run.save_checkpoint(root, model)
    Image.new("RGB", (60, 40), (200, 40, 40)).save(root / "photo.png")
    return root / "best"


def command(checkpoint: Path, output: Path, *words: str) -> list[str]:
    image = str(checkpoint.parent / "photo.png")
    return ["predict", "--checkpoint", str(checkpoint), "--image", image, "--output", str(output), *words]


def fails(arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, str)
    return ended.value.code


def test_a_truncated_sentence_is_shown_as_the_model_reads_it(checkpoint, tmp_path, capsys):
    main(command(checkpoint, tmp_path / "a.png", "--text", SENTENCE))
    precision, line, written = capsys.readouterr().out.splitlines()
    assert precision == "Precision: fp32 (auto, on a CPU without bf16 instructions)"
    read = line.split("'")[1].strip()
    assert SENTENCE.startswith(read)
    assert len(read) < len(SENTENCE)
    assert "of which the model reads 17" in line
    assert "wrote" in written
    main(command(checkpoint, tmp_path / "b.png", "--text", "the red circle"))
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_existing_files_are_replaced_only_with_overwrite(checkpoint, tmp_path):
    arguments = command(checkpoint, tmp_path / "new/a.png", "--text", "square")
    main(arguments)
    assert Image.open(tmp_path / "new/a.png").size == Image.open(tmp_path / "new/a_mask.png").size == (60, 40)
    (tmp_path / "new/a.png").write_bytes(b"old")
    assert "--overwrite" in fails(arguments)
    assert (tmp_path / "new/a.png").read_bytes() == b"old"
    main([*arguments, "--overwrite"])
    assert Image.open(tmp_path / "new/a.png").size == (60, 40)


def test_the_overlay_is_a_jpeg_by_its_suffix_and_the_mask_a_png(checkpoint, tmp_path):
    main(command(checkpoint, tmp_path / "a.JPG", "--text", "square"))
    assert {path.name: Image.open(path).format for path in tmp_path.iterdir()} == {
        "a.JPG": "JPEG",
        "a_mask.png": "PNG",
    }


def test_a_processor_of_another_model_is_refused(checkpoint, tmp_path):
    processor = DetrisProcessor.from_pretrained(checkpoint)
    processor.image_size = 64
    processor.save_pretrained(checkpoint)
    try:
        error = fails(command(checkpoint, tmp_path / "a.png", "--text", "square"))
    finally:
        processor.image_size = 48
        processor.save_pretrained(checkpoint)
    assert "expected image_size=48" in error
    assert not (tmp_path / "a.png").exists()


def images(size: int) -> tuple[Image.Image, Image.Image]:
    return Image.new("RGB", (size, size)), Image.new("L", (size, size))


def test_an_overlay_too_large_for_a_jpeg_is_one_line_and_writes_nothing(tmp_path):
    wide = Image.new("RGB", (65_501, 1))
    with pytest.raises(ValueError, match=r"--output .*a.jpg: expected an image of at most 65,500 pixels per side"):
        write_prediction(tmp_path / "a.jpg", wide, tmp_path / "a_mask.png", wide)
    assert [*tmp_path.iterdir()] == []


def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch):
    output, mask = tmp_path / "a.png", tmp_path / "a_mask.png"
    write_prediction(output, images(8)[0], mask, images(8)[1])

    def full(path: Path, content: bytes) -> None:
        path.open("wb").write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"a.png: cannot be written \(No space left on device\); free some space"):
        write_prediction(output, images(9)[0], mask, images(9)[1])
    assert [Image.open(file).size for file in (output, mask)] == [(8, 8), (8, 8)]
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a_mask.png"}


@pytest.mark.parametrize(
    ("before", "states"),
    [
        ("", {(None, None), (None, 9), (9, 9)}),
        ("pair", {(8, 8), (None, 8), (None, 9), (9, 9)}),
        ("mask", {(None, 8), (None, 9), (9, 9)}),
    ],
)
def test_a_kill_leaves_no_partial_or_mixed_files(tmp_path, before, states):
    """The overlay is old with the old mask, new with the new mask, or missing. The next command completes."""
    at, killed, found = 0, True, set()
    while killed:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        output, mask = folder / "a.png", folder / "a_mask.png"
        if before:
            write_prediction(output, images(8)[0], mask, images(8)[1])
        if before == "mask":
            output.unlink()
        killed = run_killed(lambda: write_prediction(output, images(9)[0], mask, images(9)[1]), at)  # noqa: B023
        sizes = [np.asarray(Image.open(file)).shape[0] if file.exists() else None for file in (output, mask)]
        found.add(tuple(sizes))
        write_prediction(output, images(10)[0], mask, images(10)[1])
        assert {path.name for path in folder.iterdir()} == {"a.png", "a_mask.png"}
        assert Image.open(output).size == Image.open(mask).size == (10, 10)
    assert at > 8
    assert found == states


def test_model_and_processor_are_loaded_from_the_same_revision(monkeypatch):
    loaded = []

    def load(*names, **options):
        loaded.append((names, options))
        return SimpleNamespace(config=None)

    loader = SimpleNamespace(from_pretrained=load)
    monkeypatch.setattr("detris_peft.modeling.DetrisForReferringSegmentation", loader)
    monkeypatch.setattr("detris_peft.processing_detris.DetrisProcessor", loader)
    monkeypatch.setattr("detris_peft.processing_detris.check_processor", lambda *_: None)
    checkpoint_options.load_checkpoint(checkpoint_options.CheckpointArguments("user/name", "v1", "best"))
    assert loaded == [(("user/name",), {"revision": "v1", "subfolder": "best"})] * 2
