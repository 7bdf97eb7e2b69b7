"""`detris train --init_from`: architecture, tokenizer and weights are the checkpoint's unless options change them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor, cli
from detris_peft.cli.initial_checkpoint import find_initial_checkpoint
from detris_peft.cli.train import parse_arguments
from detris_peft.cli.training_run import create_config
from detris_peft.manifest import update_manifest
from detris_peft.training import TrainingArguments
from tests.helpers import toy_run
from tests.helpers.hub_server import Repository, run_hub_server

CONFIGS = Path(__file__).parents[2] / "examples/accelerate"
DATA = "--dataset refshapes --num_workers 0 --batch_size 5 --learning_rate 1e-3 --precision fp32"


@pytest.fixture(scope="module")
def checkpoint(root):
    """A checkpoint with its processor. Its statistics of BatchNorm differ from those of a new model."""
    model = toy_run.load_model(root)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.add_(0.25)
    folder = toy_run.save_checkpoint(root, model, "initial/best")
    processor = DetrisProcessor.from_pretrained(folder)
    processor.keep_aspect_ratio = True
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def pixels(root):
    torch.manual_seed(1)
    return {"pixel_values": torch.randn(2, 3, 48, 48), "input_ids": torch.randint(1, 150, (2, 8))}


def load(*arguments, folder="unused"):
    """Return the model and the processor with which `detris train` would start."""
    run, _, backbones, _ = parse_arguments([*map(str, arguments), "--output_dir", str(folder)])
    initial = find_initial_checkpoint(run.init_from, TrainingArguments(output_dir=str(folder)))
    config, _ = create_config(run, backbones, Path(folder) / "backbones", initial)
    processor = initial.load_processor(run, backbones, config)
    return initial.load_model(config, processor.tokenizer), processor


@torch.no_grad()
def logits(model, pixels):
    return model.eval()(**pixels).logits


# -- weights ----------------------------------------------------------------------------------------------------------


def test_before_the_first_step_the_model_is_that_of_the_checkpoint(checkpoint, pixels):
    expected = DetrisForReferringSegmentation.from_pretrained(checkpoint)
    model, processor = load("--init_from", checkpoint)
    assert model.training
    assert model.state_dict().keys() == expected.state_dict().keys()
    assert all(value.equal(expected.state_dict()[name]) for name, value in model.state_dict().items())
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        n for n, p in expected.named_parameters() if p.requires_grad
    ]
    assert logits(model, pixels).equal(logits(expected, pixels))
    saved = DetrisProcessor.from_pretrained(checkpoint)
    assert processor.to_dict() == saved.to_dict()
    assert processor.tokenizer.get_vocab() == saved.tokenizer.get_vocab()


def test_trained_encoders_are_loaded(root, tmp_path, pixels):
    model = toy_run.load_model(root, vision_adapter=None, text_adapter=None, train_backbones=True)
    with torch.no_grad():
        model.vision_model.embeddings.cls_token.add_(1)
    model.half().save_pretrained(tmp_path / "best")
    toy_run.load_processor(model.config, toy_run.load_rows(root)[0]).save_pretrained(tmp_path / "best")
    loaded, _ = load("--init_from", tmp_path / "best")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert logits(loaded, pixels).equal(logits(model.float(), pixels))


def test_trained_weights_in_half_precision_become_float32(checkpoint, tmp_path, pixels):
    shutil.copytree(checkpoint.parent.parent / "backbones", tmp_path / "backbones")
    folder = shutil.copytree(checkpoint, tmp_path / "initial/best")
    for file in folder.rglob("*.safetensors"):
        weights = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
        update_manifest(folder, file.relative_to(folder).as_posix())
    model, _ = load("--init_from", folder)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert logits(model, pixels).equal(logits(DetrisForReferringSegmentation.from_pretrained(folder), pixels))


# -- options ----------------------------------------------------------------------------------------------------------


def test_values_that_any_weights_fit_can_change(checkpoint):
    options = ["--image_size", "64", "--dropout", "0.3", "--mask_threshold", "0.5", "--no_keep_aspect_ratio"]
    options += ["--loss_weights", "{bce: 1.0, dice: 0.5}"]
    model, processor = load("--init_from", checkpoint, *options)
    assert (model.config.image_size, model.config.dropout, model.config.mask_threshold) == (64, 0.3, 0.5)
    assert model.config.loss_weights == {"bce": 1.0, "dice": 0.5}
    assert (processor.image_size, processor.mask_threshold, processor.keep_aspect_ratio) == (64, 0.5, False)


def test_options_that_describe_the_same_architecture_are_accepted(checkpoint, root):
    options = (
        "--preset tiny --vision_adapter.dim 16 --vision_adapter.layers_to_transform 1 --text_adapter.dim 16 "
        "--vision_adapter.cross_attention_dim 16 --vision_adapter.cross_attention_heads 2 "
        "--vision_adapter.cross_attention_dropout 0 --text_adapter.layers_to_transform 0 "
        f"--vision_adapter.init_weights identity --vision_model {root}/backbones/vision-0 --recipe few-images"
    )
    model, processor = load("--init_from", checkpoint, *options.split())
    assert (model.config.image_size, processor.image_size) == (48, 48)  # the checkpoint's, not the preset's
    assert model.config.loss_weights == {"bce": 1.0, "dice": 0.5}  # the recipe's
    assert model.config.text_adapter.init_weights == "paper"  # as saved: the recipe starts new adapters only


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--preset detris-b",
            r"vision_config.hidden_size: expected 64, got 768; text_config.hidden_size: expected 64",
        ),
        ("--preset tiny", r"vision_adapter.dim: expected 16, got 32; vision_adapter.layers.*; and 3 more\)"),
        ("--hidden_dim 128", r"\(hidden_dim: expected 64, got 128\); remove these options, or --preset"),
        ("--text_adapter none", r"\(text_adapter: expected TEXT_ADAPTER, got None\)"),
        ("--vision_adapter {peft_type:_LORA,r:_4}", r"\(vision_adapter: expected DENSE_ALIGNER, got LORA\)"),
    ],
)
def test_another_architecture_is_refused(checkpoint, options, message):
    words = [word if word.startswith("--") else word.replace(":_", ": ") for word in options.split()]
    with pytest.raises(ValueError, match=message) as caught:
        load("--init_from", checkpoint, *words)
    assert str(caught.value).startswith(f"--init_from {checkpoint}: expected the architecture of the checkpoint")
    assert "\n" not in str(caught.value)


def test_another_tokenizer_is_refused(checkpoint, tmp_path):
    toy_run.train_tokenizer(["something else"], 160).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"--tokenizer .*: expected the vocabulary of the checkpoint"):
        load("--init_from", checkpoint, "--tokenizer", tmp_path)


def test_a_checkpoint_without_a_processor_needs_a_tokenizer(checkpoint, root, tmp_path):
    toy_run.load_model(root).save_pretrained(tmp_path / "checkpoint-4")
    with pytest.raises(FileNotFoundError, match=r"--init_from .*checkpoint-4: .*expected the processor's"):
        load("--init_from", tmp_path / "checkpoint-4")
    _, processor = load("--init_from", tmp_path / "checkpoint-4", "--tokenizer", checkpoint)
    assert processor.image_size == 48


def test_a_checkpoint_without_the_name_of_a_backbone_needs_an_option(checkpoint, root, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "best")
    content = json.loads((folder / "config.json").read_text())
    absolute = str(root / "backbones/vision-0")
    (folder / "config.json").write_text(
        json.dumps({**content, "text_name_or_path": None, "vision_name_or_path": absolute})
    )
    with pytest.raises(ValueError, match=r"names its text backbone, got one that does not; pass --text_model"):
        load("--init_from", folder)
    model, _ = load("--init_from", folder, "--text_model", root / "backbones/text-0")
    assert model.config.text_name_or_path == str(root / "backbones/text-0")


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def train(root, tmp_path, monkeypatch):
    """Run `detris train` in this process."""
    toy_run.omit_plots(monkeypatch)
    monkeypatch.setenv("DETRIS_TRACEBACK", "1")

    def train(output, options):
        words = f"train {DATA} --data_root {root} --output_dir {tmp_path / output} {options}"
        cli.main(words.split())
        return tmp_path / output

    return train


def test_a_resumed_run_needs_the_initial_checkpoint_no_more(train, checkpoint, root, tmp_path, capsys):
    shutil.copytree(root / "backbones", tmp_path / "backbones")
    initial = shutil.copytree(checkpoint, tmp_path / "initial/best")
    whole = train("whole", f"--init_from {initial} --epochs 2")
    assert f"Starting from the weights of {initial}." in capsys.readouterr().out
    parts = train("parts", f"--init_from {initial} --epochs 1")
    with pytest.raises(ValueError, match=rf"expected {initial}, from which the run .* got none; pass --init_from"):
        train("parts", "--preset tiny --epochs 2 --resume latest")
    with pytest.raises(ValueError, match=rf"expected {initial}, from which the run .* got {checkpoint}"):
        train("parts", f"--init_from {checkpoint} --epochs 2 --resume latest")
    recorded = json.loads((parts / "run.json").read_text())["options"]
    shutil.rmtree(initial)
    train("parts", f"--init_from {initial} --epochs 2 --resume latest")
    assert "its own weights are loaded to resume it" in capsys.readouterr().out
    name = "checkpoints/step-00000008/trainable.safetensors"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    options = json.loads((parts / "run.json").read_text())["options"]
    assert (options["init_from"], options["preset"], options["keep_aspect_ratio"]) == (str(initial), None, True)
    assert len(options["init_from_sha256"]) == 64
    assert options["init_from_sha256"] == recorded["init_from_sha256"]
    assert "Trained on refshapes, from the weights of initial/best." in (parts / "best/README.md").read_text()


def test_a_run_killed_before_its_first_evaluation_starts_from_the_checkpoint_again(checkpoint, tmp_path):
    """`last/` exists before the first checkpoint of the training state is complete."""
    shutil.copytree(checkpoint, tmp_path / "run/last")
    training = TrainingArguments(output_dir=str(tmp_path / "run"), resume="latest")
    assert find_initial_checkpoint(str(checkpoint), training).folder == checkpoint


@pytest.mark.slow
def test_arms_of_a_comparison_may_start_from_a_checkpoint_and_use_a_recipe(checkpoint, root, tmp_path):
    (tmp_path / "arms.yaml").write_text(
        "reference: new\nseeds: [0]\nsplits: [val]\n"
        f"common: {{dataset: refshapes, data_root: {root}, num_workers: 0, recipe: few-images, milestones: [1]}}\n"
        "arms:\n"
        "  new: {preset: tiny, image_size: 48, epochs: 1}\n"
        f"  started: {{init_from: {checkpoint}, precision: fp32, epochs: 1}}\n"
    )
    words = ["compare", str(tmp_path / "arms.yaml"), "--output_dir", str(tmp_path / "out")]
    cli.main(words)
    settings = {
        arm: json.loads((tmp_path / f"out/results/{arm}-seed0.json").read_text())["settings"]
        for arm in ("new", "started")
    }
    assert settings["started"]["options"]["init_from"] == "initial/best"
    assert len(settings["started"]["init_from"]) == 64
    assert "init_from" not in settings["new"]
    assert settings["new"]["model"]["vision_adapter"]["init_weights"] == "identity"
    cli.main([*words, "--report_only"])


@pytest.mark.slow
def test_two_processes_start_from_the_same_weights(checkpoint, root, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "cpu.yaml")]
    options = f"train {DATA} --data_root {root} --epochs 1 --batch_size 10 --drop_last --learning_rate 1e-12"
    words = [*options.split(), "--output_dir", str(tmp_path / "run"), "--init_from", str(checkpoint)]
    process = subprocess.run(
        [*command, "-m", "detris_peft.cli", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    expected = load_file(checkpoint / "head.safetensors")
    head = load_file(tmp_path / "run/best/head.safetensors")
    assert head.keys() == expected.keys()
    weights = [name for name in head if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(head[name], expected[name], atol=1e-9) for name in weights)


@pytest.mark.slow
def test_a_checkpoint_on_the_hub(checkpoint, root, tmp_path):
    files = {p.relative_to(checkpoint).as_posix(): p.read_bytes() for p in checkpoint.rglob("*") if p.is_file()}
    config = json.loads(files["config.json"])
    config |= {f"{kind}_name_or_path": str(root / f"backbones/{kind}-0") for kind in ("vision", "text")}
    files["config.json"] = json.dumps(config).encode()
    with run_hub_server() as hub:
        hub.repositories["user/start"] = Repository()
        hub.repositories["user/start"].commit("main", files)
        words = f"train {DATA} --data_root {root} --epochs 1 --init_from user/start --output_dir {tmp_path / 'run'}"
        process = subprocess.run(
            [sys.executable, "-m", "detris_peft.cli", *words.split()],
            env={
                **os.environ,
                "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                "HF_HOME": str(tmp_path / "home"),
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert process.returncode == 0, process.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["options"]["init_from"] == "user/start"
    assert "from the weights of user/start." in (tmp_path / "run/best/README.md").read_text()
