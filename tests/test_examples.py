"""The example scripts as a user runs them, on synthetic data, offline: each one once in a process of its own."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from detris_peft import presets
from detris_peft.data.refshapes import write_refshapes
from detris_peft.training import TrainingArguments

EXAMPLES = Path(__file__).parent.parent / "examples"
TRAINING = ["--preset", "tiny", "--dataset", "refshapes", "--epochs", "1", "--batch_size", "8", "--num_workers", "0"]
NAMES = ["mIoU", "oIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9"]


def run(script, *arguments, launcher=(sys.executable,)):
    """Run a script in a new process and return its standard output."""
    command = [*launcher, str(EXAMPLES / script), *map(str, arguments)]
    completed = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Run a script in the test's process, which has imported the libraries already."""

    def run_here(script, *arguments):
        """Return the standard output and the error output; the latter includes the message of `sys.exit`."""
        code = None
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        assert code is None or isinstance(code, str)  # the interpreter prints a string, and exits with 1
        return printed.out, printed.err + (code or "")

    return run_here


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_refshapes(root, train=8, val=4, test=2, image_size=64)
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    printed = run("train_refcoco.py", *TRAINING, "--data_root", data, "--output_dir", folder)
    return folder, printed


def test_training_prints_named_metrics_and_writes_the_documented_files(trained):
    folder, printed = trained
    (line,) = [line for line in printed.splitlines() if line.startswith("epoch 1")]
    assert all(name in line for name in NAMES)
    written = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    for checkpoint in ("best", "last"):
        assert {
            f"{checkpoint}/{name}"
            for name in (
                "config.json",
                "head.safetensors",
                "README.md",
                "tokenizer.json",
                "processor_config.json",
                "vision_adapter/adapter_model.safetensors",
                "text_adapter/adapter_model.safetensors",
            )
        } <= written
    assert {"metrics.json", "curves.png", "predictions.png"} <= written
    assert not [name for name in written if name.endswith(".part")]


def test_evaluation_in_a_new_process_reproduces_the_scores_of_the_run(trained, data, tmp_path):
    folder, _ = trained
    common = ["--checkpoint", folder / "best", "--data_root", data, "--dataset", "refshapes", "--num_workers", "0"]
    printed = run("evaluate_checkpoint.py", *common, "--output", tmp_path / "val.json")
    assert printed.splitlines()[1].startswith("refshapes val (8 samples): mIoU ")
    scores = json.loads((tmp_path / "val.json").read_text())
    best = json.loads((folder / "metrics.json").read_text())["best"]
    assert [scores[name] for name in NAMES] == pytest.approx([best[name] for name in NAMES], abs=1e-6)


def test_evaluation_with_shuffled_expressions_is_labeled(trained, data, run_here):
    common = ["--checkpoint", trained[0] / "last", "--data_root", data, "--dataset", "refshapes", "--split", "testB"]
    printed, error = run_here("evaluate_checkpoint.py", *common, "--num_workers", "0", "--shuffle_expressions")
    assert "error: " not in error
    assert ", expressions shuffled): mIoU " in printed
    assert printed.splitlines()[1].startswith("refshapes testB (")


def test_prediction_writes_overlay_and_mask_at_the_original_image_size(trained, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90, 3), np.uint8)).save(tmp_path / "photo.jpg")
    common = ["--checkpoint", trained[0] / "best", "--image", tmp_path / "photo.jpg", "--threshold", "0.0"]
    run("predict.py", *common, "--text", "the red circle", "--output", tmp_path / "out/overlay.png")
    mask = Image.open(tmp_path / "out/overlay_mask.png")
    assert mask.size == Image.open(tmp_path / "out/overlay.png").size == (90, 50)
    assert set(np.unique(mask)) <= {0, 255}


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("train_refcoco.py", ["--preset", "tiny", "--data_root", "nowhere"], "nowhere"),
        (
            "evaluate_checkpoint.py",
            ["--checkpoint", "./nowhere", "--data_root", "{data}", "--dataset", "refshapes"],
            "nowhere",
        ),
        ("predict.py", ["--checkpoint", "{run}", "--image", "none.jpg", "--text", "a"], "found no such file"),
    ],
)
def test_input_errors_are_one_line(script, arguments, expected, data, trained, run_here):
    # More of them: tests/bad_inputs. Two of those run in a new process.
    paths = {"data": data, "run": trained[0] / "best"}
    _, error = run_here(script, *[argument.format(**paths) for argument in arguments])
    last = error.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert expected in last
    assert "Traceback" not in error


def test_every_yaml_file_starts_with_its_command_and_contains_valid_options():
    options = set(TrainingArguments.__dataclass_fields__) | {"preset", "data_root", "dataset", "split_by"}
    options |= {"image_size", "dropout", "loss_weights", "vision_adapter", "text_adapter"}  # of the model
    files = sorted((EXAMPLES / "configs").glob("*.yaml"))
    # Rows of the paper's tables have experiment files instead: src/detris_peft/comparison/experiments/
    assert {file.stem for file in files} == {name for name in presets.list_presets() if "table" not in name}
    for file in files:
        command = file.read_text().splitlines()[0]
        assert f"examples/train_refcoco.py --config examples/configs/{file.name}" in command
        comment = " ".join(file.read_text().split("preset:")[0].split())
        assert "paper" in comment
        assert "released configuration" in comment
        content = yaml.safe_load(file.read_text())
        assert set(content) <= options, file.name
        assert content["preset"] in presets.list_presets()


@pytest.mark.slow
def test_cpu_launcher_prints_each_epoch_once(data, tmp_path):
    """`accelerate launch --cpu`: only the main process prints, whether MPI starts one process or two."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    printed = run(
        "train_refcoco.py", *TRAINING, "--data_root", data, "--output_dir", tmp_path / "run", launcher=launcher
    )
    assert len([line for line in printed.splitlines() if line.startswith("epoch 1")]) == 1
    assert json.loads((tmp_path / "run/metrics.json").read_text())["history"]
