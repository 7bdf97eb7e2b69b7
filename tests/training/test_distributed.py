"""Two ranks give the loss, gradients and scores of one."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from detris_peft import DetrisForReferringSegmentation
from tests.helpers import toy_run

CONFIGS = Path(__file__).parents[2] / "examples/accelerate"
# The learning rate is so small that the weights do not change: Adam would amplify rounding errors.
FIXED_WEIGHTS = {
    "double": True,
    "dropout": 0.0,
    "learning_rate": 1e-12,
    "epochs": 1,
    "eval_batch_size": 3,
    "drop_last": False,
}
# 20 references: two batches of 8 and one of 4; three batches of 6 and one of 2.
CASES = {
    "even": {"batch_size": 8},
    "uneven": {"batch_size": 6},
    "accumulated": {"batch_size": 6, "accumulated": 3},
    "masked": {
        "batch_size": 6,
        "distill_masked_view": True,
        "distill_block_size": 48,  # one block, so that all ranks mask the same
        "distill_token_ratio": 0.0,
        "no_target_ratio": 0.3,
        "mosaic_ratio": 0.5,
    },
}


def launch(root, cases, file, *options, config="cpu.yaml"):
    file.write_text(json.dumps(cases))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(CONFIGS / config),
        *options,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, toy_run.__file__, str(root), str(file)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def cases(folder, num_processes):
    result = []
    for name, case in CASES.items():
        case = {
            **FIXED_WEIGHTS,
            **case,
            "folder": str(folder / name),
            "gradients": str(folder / f"{name}.safetensors"),
        }
        case["batch_size"] //= num_processes
        case["gradient_accumulation_steps"] = case.pop("accumulated", 1)
        result.append(case)
    return result


def check_equal(one, two):
    for name in CASES:
        expected, got = load_file(one / f"{name}.safetensors"), load_file(two / f"{name}.safetensors")
        assert len(expected) > 100
        for key, value in expected.items():
            scale = max(value.abs().max().item(), 1.0)
            assert (got[key] - value).abs().max().item() <= 1e-5 * scale, (name, key)
        history = [json.loads((folder / name / "metrics.jsonl").read_text()) for folder in (one, two)]
        assert history[1] == pytest.approx(history[0], abs=1e-5)


@pytest.fixture(scope="module")
def one(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    (folder / "cases.json").write_text(json.dumps(cases(folder, 1)))
    command = [sys.executable, toy_run.__file__, str(root), str(folder / "cases.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_ranks_give_the_loss_gradients_and_scores_of_one(one, root, tmp_path):
    process = launch(root, cases(tmp_path, 2), tmp_path / "cases.json", "--main_process_port", free_port())
    output = process.communicate(timeout=250)[0]
    assert process.returncode == 0, output[-3000:]
    check_equal(one, tmp_path)


def test_two_ranks_with_sharded_weights_do_too_and_can_resume(one, root, tmp_path):
    """FSDP2: weights and checkpoints are sharded; the saved model is adapter-only and complete."""
    sharded = [{**case, "save_steps": 1} for case in cases(tmp_path, 2)]
    resumed = {**sharded[0], "resume": "latest", "epochs": 2}
    options = ("--num_processes", "2", "--main_process_port", free_port())
    process = launch(root, [*sharded, resumed], tmp_path / "cases.json", *options, config="fsdp2.yaml")
    output = process.communicate(timeout=280)[0]
    assert process.returncode == 0, output[-3000:]
    assert re.search(r"Resuming from .*even/checkpoints/step-00000003 \(epoch 2, step 3\)", output)
    fingerprint = json.loads((tmp_path / "even/checkpoints/step-00000006/fingerprint.json").read_text())
    assert fingerprint["engine"] == "FSDP"
    history = tmp_path / "even/metrics.jsonl"
    first, second = history.read_text().splitlines()
    assert json.loads(second)["epoch"] == 2
    history.write_text(first)
    check_equal(one, tmp_path)
    for folder in (one, tmp_path):
        DetrisForReferringSegmentation.from_pretrained(folder / "even/last")
    saved = [load_file(folder / "even/last/head.safetensors") for folder in (one, tmp_path)]
    assert {k: v.shape for k, v in saved[1].items()} == {k: v.shape for k, v in saved[0].items()}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_accelerate_reads_the_configs(file):
    config = load_config_from_file(str(file))
    assert config.num_processes > 1
    assert config.to_dict()["compute_environment"] == "LOCAL_MACHINE"


@pytest.mark.slow
def test_two_machines_do_too(one, root, tmp_path):
    address = ("--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", free_port())
    processes = [
        launch(root, cases(tmp_path, 2), tmp_path / f"cases_{rank}.json", *address, "--machine_rank", str(rank))
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=280)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    check_equal(one, tmp_path)
