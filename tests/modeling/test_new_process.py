"""Pickles and checkpoints of the complete model give the same logits in a process that has constructed no model."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.checkpoints import make
from tests.helpers.tiny_models import inputs

# Most of the time of a new process is spent on these imports. Each code runs in a fork of its own, which has not
# imported detris_peft.
PROCESS = """
import os, sys
import peft, safetensors.torch, torch, transformers

torch.set_num_threads(int(sys.argv[1]))
assert not [name for name in sys.modules if name.startswith("detris_peft")]
codes = []
for code in sys.argv[2:]:
    child = os.fork()
    if not child:
        exec(code, {})
        sys.exit()
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
sys.exit(any(codes))
"""
UNPICKLE = """
import torch
model = torch.load("model.pt", weights_only=False)
batch = torch.load("batch.pt")
with torch.no_grad():
    torch.save(model(**batch).logits, "pickle.pt")
"""
LOAD = """
import torch
from safetensors.torch import load_file, save_file
from detris_peft import DetrisForReferringSegmentation
torch.manual_seed(12345)
model = DetrisForReferringSegmentation.from_pretrained("run")
with torch.no_grad():
    save_file({"logits": model(**load_file("in.safetensors")).logits.contiguous()}, "out.safetensors")
"""


def batch() -> dict[str, torch.Tensor]:
    return {key: value for key, value in inputs().items() if key != "labels"}


@pytest.fixture(scope="module")
def processes(backbones, tmp_path_factory):
    """A folder with the logits that the new processes compute, and the two models."""
    folder = tmp_path_factory.mktemp("processes")
    torch.manual_seed(0)
    pickled, saved = make(backbones, position_interpolation="official"), make(backbones)
    # Before the first forward pass, which must register hooks in the new process.
    torch.save(pickled, folder / "model.pt")
    torch.save(batch(), folder / "batch.pt")
    saved.save_pretrained(folder / "run")
    save_file(batch(), folder / "in.safetensors")
    command = [sys.executable, "-c", PROCESS, str(torch.get_num_threads()), UNPICKLE, LOAD]
    subprocess.run(command, check=True, timeout=240, cwd=folder)
    return folder, pickled, saved


def test_a_saved_model_works_in_a_new_process(processes):
    """As in `spawn` children."""
    folder, model, _ = processes
    with torch.no_grad():
        assert torch.equal(torch.load(folder / "pickle.pt"), model(**batch()).logits)


def test_logits_are_bit_identical_in_a_new_process(processes):
    """Also with another random seed."""
    folder, _, model = processes
    with torch.no_grad():
        assert torch.equal(load_file(folder / "out.safetensors")["logits"], model(**batch()).logits)
