"""`detris compare` on tiny runs: what is trained, that runs are independent, and that it can be interrupted."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from detris_peft.cli import main
from detris_peft.comparison import report, shipped_experiments
from detris_peft.training.step import TrainingStep
from tests.helpers import toy_run

COMMON = {
    "preset": "tiny",
    "dataset": "refshapes",
    "image_size": 48,
    "decoder_layers": 1,
    "epochs": 2,
    "batch_size": 10,
    "milestones": [1],
}
# The first arm has another precision and learning rate, which must not affect the second.
ARMS = {
    "none": {"vision_adapter": None, "text_adapter": None, "precision": "bf16", "learning_rate": 1e-3},
    "lora": {"vision_adapter": {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}, "text_adapter": None},
}


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch):
    """Plots take most of the time of a tiny run; those of the fixture `finished` are real."""
    toy_run.omit_plots(monkeypatch)
    for name in ("plot_bars", "plot_arm_curves", "plot_figure2", "plot_errors"):
        monkeypatch.setattr(report, name, lambda *arguments: arguments[-1].touch())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return toy_run.write_toys(tmp_path_factory.mktemp("data"))


def write_experiment(folder, data, **changes):
    """Write an experiment, and return the start of the command."""
    content = {"reference": "lora", "seeds": [0], "splits": ["val"], "arms": ARMS, "common": COMMON, **changes}
    (folder / "made.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return ["compare", str(folder / "made.yaml"), "--data_root", str(data)]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A finished comparison: its command without the output_dir, and its folder."""
    folder = tmp_path_factory.mktemp("finished")
    command = write_experiment(folder, data)
    with pytest.MonkeyPatch.context() as patch:
        toy_run.omit_plots(patch)
        main([*command, "--output_dir", str(folder / "out")])
    return command, folder / "out"


def weights(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.safetensors"))}


def result(folder, name):
    """Return a result without what differs between equal runs."""
    content = json.loads((folder / f"results/{name}.json").read_text())
    return {key: value for key, value in content.items() if key not in ("seconds", "interruptions")}


def test_a_finished_comparison_has_results_and_a_report(finished):
    _, folder = finished
    assert {path.stem for path in (folder / "results").iterdir()} == {"none-seed0", "lora-seed0"}
    rows = {row["arm"]: row for row in csv.DictReader((folder / "table.csv").open())}
    for arm, row in rows.items():
        content = result(folder, f"{arm}-seed0")
        assert float(row["val_mIoU_mean"]) == content["metrics"]["val"]["mIoU"]
        assert int(row["backbone_update_parameters"]) == content["parameters"]["vision_adapter"]
        assert len(content["history"]) == 2
        assert len(content["samples"]["val"]["ids"]) == 8
        assert str(folder) not in json.dumps(content)
    assert rows["none"]["backbone_update_parameters"] == "0"
    assert rows["lora"]["backbone_update_parameters"] == str(4 * 2 * 2 * 64)
    for name in ("figure2.png", "errors.png"):
        with Image.open(folder / name) as image:
            assert image.height > 400
    text = (folder / "report.md").read_text()
    assert "errors of lora (wrong object or none: " in text
    assert "| all | 100 | " in text
    assert "| with “" in text


def test_an_arm_is_bit_equal_to_the_same_training_alone(finished, data, tmp_path):
    _, folder = finished
    options = {**COMMON, **ARMS["lora"]}
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(options))
    alone = tmp_path / "alone"
    main(["train", "--config", str(tmp_path / "alone.yaml"), "--data_root", str(data), "--output_dir", str(alone)])
    run = folder / "runs/lora-seed0"
    for name in ("best", "last", "backbones"):
        assert weights(run / name) == weights(alone / name)
    assert (run / "metrics.jsonl").read_text() == (alone / "metrics.jsonl").read_text()
    output = tmp_path / "val.json"
    evaluate = ["evaluate", "--checkpoint", str(alone / "best"), "--data_root", str(data), "--dataset", "refshapes"]
    main([*evaluate, "--split", "val", "--num_workers", "0", "--output", str(output)])
    scores = json.loads(output.read_text())
    metrics = result(folder, "lora-seed0")["metrics"]["val"]
    assert {name: scores[name] for name in metrics if name != "loss"} == {
        name: value for name, value in metrics.items() if name != "loss"
    }


def test_what_is_finished_is_not_trained_again(finished, capsys, monkeypatch):
    command, folder = finished
    monkeypatch.setattr("detris_peft.cli.training_run.train", lambda *_: pytest.fail("trained again"))
    main([*command, "--output_dir", str(folder), "--samples", "25", "21"])
    printed = capsys.readouterr().out
    assert printed.count("finished already") == 2
    assert "split val, samples 25, 21." in printed
    with pytest.raises(SystemExit, match=r"--samples: expected ids of samples of val, such as .*, got 9999"):
        main([*command, "--output_dir", str(folder), "--samples", "9999"])


def test_copied_results_count_as_finished(finished, tmp_path, capsys, monkeypatch):
    command, folder = finished
    monkeypatch.setattr("detris_peft.cli.training_run.train", lambda *_: pytest.fail("trained again"))
    shutil.copytree(folder / "results", tmp_path / "copy/results")
    main([*command, "--output_dir", str(tmp_path / "copy")])
    assert "figure2.png and errors.png are not drawn: they need predicted masks" in capsys.readouterr().out
    for name in ("table.csv", "table.md", "table.tex"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


def test_words_of_another_dataset_are_not_compared(finished, tmp_path, capsys):
    """RefShapes with another seed has other sentences under the same ids."""
    command, folder = finished
    shutil.copytree(folder / "results", tmp_path / "copy/results")
    toy_run.write_refshapes(tmp_path / "other", train=10, val=4, test=1, image_size=48, seed=1)
    data = ["--data_root", str(tmp_path / "other")]
    main([*command[:-2], *data, "--output_dir", str(tmp_path / "copy"), "--report_only"])
    assert re.search(
        r"Words are not compared, .*val: expected the rows that none-seed0 was scored on, got others",
        capsys.readouterr().out,
    )
    assert "| with “" not in (tmp_path / "copy/report.md").read_text()


def test_a_report_needs_neither_data_nor_checkpoints(finished, tmp_path, capsys):
    command, folder = finished
    (tmp_path / "results").mkdir()
    shutil.copy(folder / "results/lora-seed0.json", tmp_path / "results")
    options = ["--data_root", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path), "--report_only"]
    main([*command, *options])
    printed = capsys.readouterr().out
    assert "Not finished yet: none (seed 0)." in printed
    assert {path.name for path in tmp_path.iterdir()} >= {"report.md", "table.csv", "bars.png", "results"}
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--epochs", "3"],
            r"none-seed0.json: expected a result with the settings .*options.epochs: expected 3, got 2",
        ),
        (["--hidden_dim", "32"], r"model.hidden_dim: expected 32, got 64"),
        (["--epochs", "3", "--report_only"], r"none-seed0: .*options.epochs: expected 3, got 2"),
    ],
)
def test_results_of_other_options_are_refused(finished, options, message):
    command, folder = finished
    with pytest.raises(SystemExit, match=message):
        main([*command, "--output_dir", str(folder), *options])


def test_other_data_is_refused_but_another_place_is_not(finished, data, tmp_path):
    command, folder = finished
    shutil.copytree(data, tmp_path / "moved")
    main([*command[:-1], str(tmp_path / "moved"), "--output_dir", str(folder), "--num_workers", "1"])
    toy = toy_run.write_refshapes(tmp_path / "other", train=10, val=4, test=1, image_size=48, seed=1)
    with pytest.raises(SystemExit, match=r"data\..*sha256: expected "):
        main([*command[:-1], str(toy.parent), "--output_dir", str(folder)])


def test_an_arm_without_adapters_is_not_one_with_the_default_ones(finished, data, tmp_path):
    """Their settings are equal, because defaults are omitted; their numbers of parameters differ."""
    _, folder = finished
    shutil.copytree(folder / "results", tmp_path / "out/results")
    file = tmp_path / "out/results/none-seed0.json"
    content = json.loads(file.read_text())
    content["parameters"]["vision_adapter"] = 5
    file.write_text(json.dumps(content))
    command = write_experiment(tmp_path, data)
    with pytest.raises(SystemExit, match=r"none-seed0.json: .*parameters.vision_adapter: expected 0, got 5"):
        main([*command, "--output_dir", str(tmp_path / "out")])


class Killed(BaseException):
    """Ends a run as abruptly as this process allows."""


@pytest.mark.parametrize("how", ["signal", pytest.param("kill", marks=pytest.mark.slow)])
def test_an_interrupted_comparison_continues_to_the_same_result(finished, tmp_path, monkeypatch, how):
    """The second arm is interrupted in its second epoch; the first is not trained again."""
    command, folder = finished
    out, steps, real = tmp_path / "out", [], TrainingStep.run

    def run(*args):
        steps.append(1)
        if len(steps) == 7:
            if how == "kill":
                raise Killed
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(TrainingStep, "run", run)
    with pytest.raises(Killed if how == "kill" else SystemExit) as stopped:
        main([*command, "--output_dir", str(out)])
    assert how == "kill" or getattr(stopped.value, "code", None) == 128 + signal.SIGINT
    assert [path.stem for path in (out / "results").iterdir()] == ["none-seed0"]
    assert "Not finished yet: lora (seed 0)" in (out / "report.md").read_text()
    main([*command, "--output_dir", str(out)])
    assert 8 <= len(steps) <= 9
    for name in ("none-seed0", "lora-seed0"):
        assert result(out, name) == result(folder, name)
    for file in ("runs/lora-seed0/best", "runs/lora-seed0/last"):
        assert weights(out / file) == weights(folder / file)
    assert (out / "table.csv").read_bytes() == (folder / "table.csv").read_bytes()


def test_only_some_arms_and_seeds(data, tmp_path, capsys):
    command = write_experiment(tmp_path, data, seeds=[0, 1], common={**COMMON, "epochs": 1})
    main([*command, "--output_dir", str(tmp_path / "out"), "--only", "none", "--seeds", "1"])
    assert [path.stem for path in (tmp_path / "out/results").iterdir()] == ["none-seed1"]
    assert "Not finished yet: none (seed 0); lora (all seeds)." in capsys.readouterr().out


def test_a_run_of_another_process_is_skipped(data, tmp_path, capsys):
    command = write_experiment(tmp_path, data)
    lock = tmp_path / "out/.locks/lora-seed0/.lock"
    lock.parent.mkdir(parents=True)
    code = f"import fcntl; f = open({str(lock)!r}, 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('locked', flush=True)"
    code += "; input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        main([*command, "--output_dir", str(tmp_path / "out"), "--only", "lora"])
        other.communicate(b"\n")
    assert "lora, seed 0: skipped, because another process is working on it." in capsys.readouterr().out
    assert not (tmp_path / "out/results").exists()


def test_a_run_that_fails_is_named_and_not_finished(data, tmp_path):
    arms = {"lora": {"learning_rate": 1e30, "max_grad_norm": 0.0}}
    command = write_experiment(tmp_path, data, arms=arms)
    with pytest.raises(SystemExit, match=r"error: lora, seed 0: .*loss") as failed:
        main([*command, "--output_dir", str(tmp_path / "out")])
    assert "\n" not in str(failed.value.code)
    assert not (tmp_path / "out/results").exists()


def test_the_shipped_experiments_are_listed(capsys):
    assert shipped_experiments() == ("plus-small", "table2", "table2-small", "table3", "table3-small")
    main(["compare", "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*shipped_experiments()]
    assert "detris-b-half, detris-b (reference detris-b, seeds [0, 1, 2])" in lines[1]


@pytest.mark.slow
def test_two_processes_compare_too(data, tmp_path):
    """Several runs, one after the other, in one launch; each rank takes part in training and evaluation."""
    command = write_experiment(tmp_path, data, common={**COMMON, "batch_size": 5})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    config = str(Path(__file__).parents[2] / "examples/accelerate/cpu.yaml")
    launch = ["-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", port]
    options = [*command, "--output_dir", str(tmp_path / "out")]
    for expected in ("[2/2] lora, seed 0: training.", "[2/2] lora, seed 0: finished already."):
        process = subprocess.run(
            [sys.executable, *launch, "-m", "detris_peft.cli", *options],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert process.returncode == 0, process.stderr[-3000:]
        assert process.stdout.count(expected) == 1
    for arm in ARMS:
        content = result(tmp_path / "out", f"{arm}-seed0")
        assert content["num_processes"] == 2
        assert content["settings"]["options"]["batch_size"] == 10
        assert len(set(content["samples"]["val"]["ids"])) == 8
        masks = json.loads((tmp_path / f"out/predictions/{arm}-seed0.json").read_text())["val"]
        assert sorted(masks) == sorted(content["samples"]["val"]["ids"])


@pytest.mark.slow
def test_a_killed_process_continues_to_the_same_result(finished, tmp_path):
    """SIGKILL at several times, also between training and the result."""
    command, folder = finished
    out = tmp_path / "out"
    start = [sys.executable, "-m", "detris_peft.cli", *command, "--output_dir", str(out)]
    for moment in ("runs/none-seed0/checkpoints", "runs/none-seed0/metrics.json", "predictions/none-seed0.json"):
        with subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not (out / moment).exists() and process.poll() is None:
                time.sleep(0.01)
            process.kill()
    assert subprocess.run(start, capture_output=True, check=False).returncode == 0
    for name in ("none-seed0", "lora-seed0"):
        assert result(out, name) == result(folder, name)
