"""Tests of the `detris` command: conversion, original backbone files, one-line errors, and standard output."""

from __future__ import annotations

import io
import os
import sys

import pytest
import torch
from PIL import Image
from transformers import Dinov2WithRegistersConfig
from transformers import Dinov2WithRegistersModel as Dinov2

from detris_peft import DetrisForReferringSegmentation, presets
from detris_peft.cli import main, run
from detris_peft.conversion import load_official_checkpoint
from detris_peft.data.refshapes import write_refshapes
from tests.helpers import toy_run
from tests.helpers.original_files import original_weights
from tests.helpers.reference import FIXTURES, reference_config

CHECKPOINT = FIXTURES / "tiny_checkpoint.pth"


@pytest.fixture(scope="module")
def dino_file(tmp_path_factory):
    """The original file of a DINOv2 of another size than those of the other tests."""
    config = Dinov2WithRegistersConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=42, patch_size=14, mlp_ratio=2
    )
    path = tmp_path_factory.mktemp("dino") / "dino.pth"
    torch.save(original_weights(Dinov2(config), "vision"), path)
    return path


@pytest.fixture
def convert_arguments(tmp_path):
    """Arguments that convert the reference checkpoint to the folder "run", with its backbones as folders."""
    model = load_official_checkpoint(CHECKPOINT, reference_config())
    for kind in ("vision", "text"):
        getattr(model, f"{kind}_model").unload().save_pretrained(tmp_path / kind)
    (tmp_path / "config.json").write_text(reference_config().to_json_string(use_diff=False))
    return [
        str(CHECKPOINT),
        *("--config", str(tmp_path / "config.json"), "--output", str(tmp_path / "run")),
        *("--vision_model", str(tmp_path / "vision"), "--text_model", str(tmp_path / "text")),
    ]


def fails(*arguments) -> str:
    """Run a command that fails with one line, and return that line."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert str(ended.value.code).startswith("error: ")
    assert "\n" not in str(ended.value.code)
    return str(ended.value.code)


def test_conversion_round_trips(convert_arguments, tmp_path, capsys):
    main(["convert", *convert_arguments, "--verify-backbones"])
    printed = capsys.readouterr().out
    assert "vision backbone: " in printed
    assert "max abs difference" not in printed
    assert "skipped the processor's files; pass --tokenizer" in printed  # these backbones have no tokenizer
    model = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run")
    assert model.config.position_interpolation == "official"
    back = tmp_path / "back.pth"
    main(["convert", str(tmp_path / "run"), "--to-official", "--output", str(back)])
    expected, got = (torch.load(file, weights_only=True)["state_dict"] for file in (CHECKPOINT, back))
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], value) for key, value in expected.items())
    assert "add --overwrite" in fails("convert", tmp_path / "run", "--to-official", "--output", back)
    main(["convert", str(tmp_path / "run"), "--to-official", "--output", str(back), "--overwrite"])
    # The config of a checkpoint names its backbones relative to the checkpoint.
    config, deeper = tmp_path / "run" / "config.json", tmp_path / "deeper" / "folder" / "run"
    main(["convert", str(CHECKPOINT), "--config", str(config), "--output", str(deeper)])
    DetrisForReferringSegmentation.from_pretrained(deeper)


def test_verification_names_the_weight_that_differs(convert_arguments, tmp_path, capsys):
    model = Dinov2.from_pretrained(tmp_path / "vision")
    model.layernorm.bias.data[0] += 0.25
    model.save_pretrained(tmp_path / "vision")
    assert "got 1 that differ" in fails("convert", *convert_arguments, "--verify-backbones")
    assert "vision layernorm.bias: max abs difference 0.25\n" in capsys.readouterr().out


def test_training_converts_original_backbone_files(tmp_path, dino_file, monkeypatch):
    """The checkpoint names the converted folders. A file of another size decides the size of the model."""
    toy_run.omit_plots(monkeypatch)
    write_refshapes(tmp_path, train=2, val=1, test=1, image_size=64)
    config = presets.get("tiny")
    config.vision_config.num_attention_heads = config.text_config.num_attention_heads = 1  # published heads: 64 wide
    model = DetrisForReferringSegmentation(config)
    for kind in ("vision", "text"):
        backbone = getattr(model, f"{kind}_model").unload()
        torch.save(original_weights(backbone, kind), tmp_path / f"{kind}.pth")
    common = ["train", "--preset", "tiny", "--dataset", "refshapes", "--data_root", str(tmp_path), "--epochs", "1"]
    common += [
        "--num_workers",
        "0",
        "--batch_size",
        "4",
        "--output_dir",
        str(tmp_path / "run"),
        "--clip",
        str(tmp_path / "text.pth"),
    ]
    main([*common, "--dino", str(tmp_path / "vision.pth")])
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run" / "last")
    assert loaded.config.vision_name_or_path.endswith("backbones/dino")
    positions = loaded.vision_model.unload().state_dict()["embeddings.position_embeddings"]
    assert torch.equal(positions, torch.load(tmp_path / "vision.pth", weights_only=True)["pos_embed"])
    main([*common, "--dino", str(dino_file), "--overwrite"])
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run" / "last")
    assert loaded.config.vision_config.hidden_size == 128
    both = [*common, "--dino", "x", "--vision_model", "y"]
    assert "expected --vision_model or --dino, got both" in fails(*both)


def test_input_errors_are_one_line(tmp_path, dino_file):
    (tmp_path / "cut.pth").write_bytes(CHECKPOINT.read_bytes()[:5000])
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "bert.json").write_text('{"model_type": "bert"}')
    output = ["--output", tmp_path / "run"]
    common = [*output, "--preset", "detris-b"]
    for arguments, message in (
        ([tmp_path / "none.pth", *common], "expected a checkpoint, found no such file"),
        ([tmp_path / "cut.pth", *common], "got a truncated one"),
        ([dino_file, *common], "got a DINO backbone alone"),
        ([CHECKPOINT, *common], "no preset matches"),
        ([CHECKPOINT, *output], "expected the architecture as --preset or as --config, got none"),
        ([CHECKPOINT, *output, "--config", tmp_path / "text.json"], "text.json: expected JSON"),
        ([CHECKPOINT, *output, "--config", tmp_path / "bert.json"], "got model_type 'bert'"),
        ([tmp_path, "--to-official", "--output", tmp_path / "x.pth"], "found no config.json"),
    ):
        assert message in fails("convert", *arguments)
    assert not (tmp_path / "run").exists()


def test_invalid_predict_options_are_one_line(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "config.json").write_text("{}")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    common = ["predict", "--checkpoint", tmp_path, "--text", "the red circle"]
    for arguments, message in (
        (["--image", tmp_path / "none.png"], "expected an image, found no such file"),
        (["--image", tmp_path / "text.png"], "got a file that cannot be decoded"),
        (["--image", tmp_path / "image.png", "--threshold", 1.5], "expected a probability of at least 0 and below 1"),
        (["--image", tmp_path / "image.png", "--device", "nowhere"], "--device nowhere: expected cpu"),
    ):
        assert message in fails(*common, *arguments)


def test_unknown_command_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["conver"])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert all(name in printed for name in ("train", "evaluate", "predict", "convert", "data"))


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "convert", "data check", "data convert"])
def test_help_names_the_command_and_its_options(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: detris {command} [-h] ")
    assert "--overwrite" in printed or command == "data check"


def test_conversion_replaces_only_a_checkpoint_and_only_with_overwrite(convert_arguments, tmp_path):
    main(["convert", *convert_arguments])
    assert "add --overwrite" in fails("convert", *convert_arguments)
    main(["convert", *convert_arguments, "--overwrite"])
    (tmp_path / "run" / "head.safetensors").unlink()
    (tmp_path / "run" / ".detris_peft").unlink(missing_ok=True)
    assert "got a folder with other files" in fails("convert", *convert_arguments, "--overwrite")


def test_a_wrong_tokenizer_ends_a_conversion_before_it_writes(convert_arguments, tmp_path):
    assert "--tokenizer" in fails("convert", *convert_arguments, "--tokenizer", tmp_path / "vision")
    assert not (tmp_path / "run").exists()


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (OSError(28, "No space left on device", "a.png"), ("a.png: No space left on device", "free some space")),
        (OSError(13, "Permission denied", "a.png"), ("a.png: Permission denied", "permissions")),
        (OSError(99, "Strange"), ("Strange", "try again")),
        (MemoryError(), ("more free memory", "smaller batch size")),
        (MemoryError("A step does not fit: try a batch_size below 4."), ("error: A step does not fit",)),
        (torch.OutOfMemoryError("CUDA out of memory.\nSee"), ("CUDA out of memory", "smaller batch size")),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ("more free memory", "smaller batch size")),
        (ValueError(), ("unexpected error (ValueError", "DETRIS_TRACEBACK=1", "report it")),
        (OSError(), ("unexpected error (OSError", "DETRIS_TRACEBACK=1", "report it")),
        (KeyError("x"), ("unexpected error (KeyError: 'x')", "DETRIS_TRACEBACK=1", "report it")),
        (RecursionError("too\ndeep"), ("unexpected error (RecursionError: too deep)",)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_any_exception_is_one_line_with_advice(error, parts, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        run(_raise, error)
    assert str(ended.value.code).startswith("error: ")
    assert "\n" not in str(ended.value.code)
    assert all(part in str(ended.value.code) for part in parts)
    monkeypatch.setenv("DETRIS_TRACEBACK", "1")
    with pytest.raises(type(error)):
        run(_raise, error)


def test_output_of_another_encoding_is_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    run(print, "赤い円")
    assert written.getvalue() == rb"\u8d64\u3044\u5186" + b"\n"


def test_a_closed_pipe_ends_a_command_without_a_message(monkeypatch, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as ended:
            run(lambda: print("x"))
    assert ended.value.code == 141
    assert not capfd.readouterr().err


def test_output_to_a_full_disk_is_one_line(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit, match="error: No space left on device; free some space"):
            run(lambda: print("x"))


def test_closed_output_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    run(print, "x")
