"""Every arm of Tables 2 and 3, and other adapters of peft: trained, saved, loaded in a new process, and resumed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import IA3Config, LNTuningConfig, LoraConfig

from detris_peft import BottleneckAdapterConfig, CompacterConfig, DetrisForReferringSegmentation, TextAdapterConfig
from detris_peft.modeling.bridger_config import BridgerConfig
from detris_peft.training import train
from tests.helpers import toy_run
from tests.training.test_kills import weights

LORA = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"])
NONE = {"vision_adapter": None, "text_adapter": None}
ARMS = {
    "full": {**NONE, "train_backbones": True},
    "fixed": NONE,
    "adapter": {"vision_adapter": BottleneckAdapterConfig(dim=8), "text_adapter": BottleneckAdapterConfig(dim=8)},
    "compacter": {
        "vision_adapter": CompacterConfig(dim=16, phm_rank=2),
        "text_adapter": CompacterConfig(dim=8, phm_rank=2),
    },
    "lora": {"vision_adapter": LORA, "text_adapter": LORA},
    "dora": {
        "vision_adapter": LoraConfig(r=2, lora_dropout=0.1, target_modules="all-linear", use_dora=True),
        "text_adapter": TextAdapterConfig(dim=16, layers_to_transform=[0]),
    },
    "ia3": {
        "vision_adapter": IA3Config(target_modules=["k_proj", "fc2"], feedforward_modules=["fc2"]),
        "text_adapter": LNTuningConfig(target_modules=["layer_norm1"]),
    },
    "etris": {**NONE, "bridger": BridgerConfig(dim=16, vision_after_blocks=[1, 3], text_after_blocks=[0, 2])},
    "aligner": {"text_adapter": None},
    "text": {"vision_adapter": None},
}
# Prints the sum of the outputs of each checkpoint, as an exact hexadecimal number, in a process of its own.
LOAD = """
import json, sys
from tests.training.test_arms import digest
from detris_peft import DetrisForReferringSegmentation
print(json.dumps({folder: digest(DetrisForReferringSegmentation.from_pretrained(folder)) for folder in sys.argv[1:]}))
"""


def digest(model) -> str:
    """Return the exact outputs for fixed inputs, as text."""
    torch.manual_seed(0)
    pixel_values, input_ids = torch.randn(1, 3, 48, 48), torch.tensor([[158, 5, 9, 159, 0]])
    with torch.no_grad():
        return float(model.eval()(pixel_values, input_ids).logits.double().abs().sum()).hex()


def run(root, folder, arm, **changes):
    """Run `train` as a new process would, and return the model and the history."""
    AcceleratorState._reset_state(reset_partial_state=True)
    rows = toy_run.load_rows(root)
    model = toy_run.load_model(root, 0.1, **ARMS[arm])
    processor = toy_run.load_processor(model.config, rows[0])
    return model, train(model, processor, *rows, toy_run.arguments(folder, **changes))


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """Folder and output of each arm after two epochs; a second run resumes from the checkpoint of the first epoch."""
    folder, outputs = tmp_path_factory.mktemp("arms"), {}
    with pytest.MonkeyPatch.context() as patch:
        toy_run.omit_plots(patch)
        for arm in ARMS:
            whole, history = run(root, folder / arm / "whole", arm)
            first = min((folder / arm / "whole/checkpoints").iterdir())
            _, resumed = run(root, folder / arm / "resumed", arm, resume=str(first))
            outputs[arm] = digest(whole), history, resumed
    return folder, outputs


@pytest.mark.parametrize("arm", ARMS)
def test_a_resumed_arm_is_bit_identical(trained, arm):
    folder, outputs = trained
    _, history, resumed = outputs[arm]
    assert resumed == history
    assert weights(folder / arm / "resumed/last") == weights(folder / arm / "whole/last")


def test_every_arm_is_loaded_bit_equal_in_a_new_process(trained):
    folder, outputs = trained
    names = [str(folder / arm / "whole/last") for arm in ARMS]
    done = subprocess.run([sys.executable, "-c", LOAD, *names], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert loaded == {name: outputs[arm][0] for name, arm in zip(names, ARMS, strict=True)}


@pytest.mark.parametrize("arm", ARMS)
def test_training_changes_only_what_is_saved(root, trained, arm):
    folder, _ = trained
    start = toy_run.load_model(root, 0.1, **ARMS[arm])
    loaded = DetrisForReferringSegmentation.from_pretrained(folder / arm / "whole/last")
    before, after = dict(start.named_parameters()), dict(loaded.named_parameters())
    changed = {name.partition(".")[0] for name, p in after.items() if not torch.equal(p, before[name])}
    frozen = {name for name, p in before.items() if not p.requires_grad}
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    expected = {"neck", "decoder", "projector"}
    expected |= {"bridger"} if start.bridger is not None else set()
    expected |= {"vision_model"} if start.config.vision_adapter or start.config.train_backbones else set()
    expected |= {"text_model"} if start.config.text_adapter or start.config.train_backbones else set()
    assert changed == expected
