"""Compacter's matrices A are one parameter for all adapters of an encoder, whatever is done with the model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from detris_peft.adapters import adapter_state_dict, load_adapter_state_dict
from tests.helpers.adapter_cases import COMPACTER, assert_differ, randomize
from tests.helpers.replicas import replicate


def matrices(model: nn.Module, adapter_name: str = "default") -> list[torch.Tensor]:
    """Return the parameters A of all adapters, one per adapted module."""
    return [
        p
        for name, p in model.named_parameters(remove_duplicate=False)
        if name.endswith(f"{adapter_name}.matrices.weight")
    ]


def assert_shared(model: nn.Module, adapter_name: str = "default") -> torch.Tensor:
    found = matrices(model, adapter_name)
    assert len(found) == 4  # two blocks, after attention and MLP
    assert len({id(p) for p in found}) == 1
    return found[0]


def load_low_memory(model: PeftModel, folder: Path) -> nn.Module:
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(COMPACTER.make_backbone(), folder, low_cpu_mem_usage=True)


CHANGES: dict[str, Callable[[PeftModel, Path], nn.Module]] = {
    "none": lambda model, folder: model,
    "deepcopy": lambda model, folder: copy.deepcopy(model),
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "cast": lambda model, folder: model.double().float(),
    "state-dict-with-assign": lambda model, folder: _assign(model),
    "load": lambda model, folder: (
        model.save_pretrained(folder),
        PeftModel.from_pretrained(COMPACTER.make_backbone(), folder),
    )[1],
    "load-low-memory": load_low_memory,
}


def _assign(model: PeftModel) -> PeftModel:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model


@pytest.mark.parametrize("change", CHANGES)
def test_matrices_stay_shared(change: str, tmp_path: Path):
    model = COMPACTER.make_model()
    expected = COMPACTER.run(model)
    changed = CHANGES[change](model, tmp_path).eval()
    parameter = assert_shared(changed)
    assert torch.equal(COMPACTER.run(changed), expected)
    with torch.no_grad():
        parameter.zero_()
    plain = COMPACTER.run(COMPACTER.make_backbone())
    assert_differ(COMPACTER.run(changed), expected)
    for name, p in changed.named_parameters():
        if name.endswith("bias") and "compacter" in name:
            p.data.zero_()
    torch.testing.assert_close(COMPACTER.run(changed), plain)


def test_each_adapter_has_its_own_matrices(tmp_path: Path):
    model = COMPACTER.make_model("a")
    model.add_adapter("b", COMPACTER.make_config(layers_to_transform=[1, 2]))
    randomize(model, "b")
    a, b = assert_shared(model, "a"), assert_shared(model, "b")
    assert a is not b
    model.save_pretrained(tmp_path)
    for name, value in (("a", a), ("b", b)):
        saved = load_file(tmp_path / name / "adapter_model.safetensors")
        (key,) = [key for key in saved if "matrices" in key]  # saved once, with the first adapted module
        assert f"layers.{0 if name == 'a' else 1}.self_attn.out_proj." in key
        assert torch.equal(saved[key], value)
    model.set_adapter("b")
    assert b.requires_grad
    assert not a.requires_grad
    model.delete_adapter("a")
    assert matrices(model, "a") == []
    assert_shared(model, "b")
    model.delete_adapter("b")
    assert not [name for name, _ in model.named_parameters() if "matrices" in name]


def test_matrices_are_counted_and_trained_once():
    model = COMPACTER.make_model().train()
    weights = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.shape == (4, 4, 4) for p in weights) == 1
    per_projection = 2 * (3 * (32 + 16)) + 16 + 32
    assert model.get_nb_trainable_parameters()[0] == 4 * per_projection + 4**3
    model(**COMPACTER.inputs()).last_hidden_state.square().mean().backward()
    # The gradient is the sum over all adapters.
    total = assert_shared(model).grad
    for layer in model.base_model._adapted_layers:
        layer.branches["default"].matrices = copy.deepcopy(layer.branches["default"].matrices)
        layer.branches["default"].matrices.weight.grad = None
    model(**COMPACTER.inputs()).last_hidden_state.square().mean().backward()
    parts = [p.grad for p in matrices(model)]
    assert len({id(p) for p in parts}) == 4
    torch.testing.assert_close(torch.stack(parts).sum(0), total)


def test_files_of_peft_and_of_our_functions_agree(tmp_path: Path):
    model = COMPACTER.make_model("a")
    model.save_pretrained(tmp_path)
    file, ours = load_file(tmp_path / "a" / "adapter_model.safetensors"), adapter_state_dict(model, "a")
    assert file.keys() == ours.keys()
    assert sum("matrices" in key for key in file) == 1

    target = COMPACTER.make_model("x")
    load_adapter_state_dict(target, "x", ours)
    assert torch.equal(COMPACTER.run(target), COMPACTER.run(model))
    assert torch.equal(assert_shared(target, "x"), assert_shared(model, "a"))


def test_weights_are_injected_without_a_peft_model():
    model = inject_adapter_in_model(COMPACTER.make_config(), COMPACTER.make_backbone(), adapter_name="injected")
    randomize(model)
    assert_shared(model, "injected")
    state = get_peft_model_state_dict(model, adapter_name="injected")
    assert sum("matrices" in key for key in state) == 1
    empty = inject_adapter_in_model(COMPACTER.make_config(), COMPACTER.make_backbone(), low_cpu_mem_usage=True)
    set_peft_model_state_dict(empty, state, low_cpu_mem_usage=True)
    assert_shared(empty)
    torch.testing.assert_close(COMPACTER.run(empty), COMPACTER.run(model))


def test_replicas_of_data_parallel_share_and_return_gradients():
    model = COMPACTER.make_model().train()
    model(**COMPACTER.inputs()).last_hidden_state.square().sum().backward()
    expected = assert_shared(model).grad.clone()
    model.zero_grad()
    losses = [r(**COMPACTER.inputs()).last_hidden_state.square().sum() for r in replicate(model, 2)]
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(assert_shared(model).grad, expected)


def test_a_refused_file_leaves_the_matrices_unchanged(tmp_path: Path):
    model = COMPACTER.make_model()
    state = adapter_state_dict(model, "default")
    key = next(key for key in state if "matrices" in key)
    before = assert_shared(model).clone()
    for bad in ({**state, key: state[key][:2]}, {k: v for k, v in state.items() if k != key}):
        with pytest.raises(ValueError, match=r"do not fit"):
            load_adapter_state_dict(model, "default", bad)
    assert torch.equal(assert_shared(model), before)
