"""Adapter files that do not fit are refused, and leave neither a random adapter nor changed weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file

from tests.helpers.adapter_cases import AdapterCase, each_tuner

BAD_WEIGHTS = {
    "missing": (lambda value: None, r"1 missing \[.*up\.\w+"),
    "nan": (lambda value: value * torch.nan, r"finite values for .*up\.\w+, got NaN or infinity"),
    "infinite": (lambda value: value / 0, r"finite values for .*up\.\w+"),
    "integer": (lambda value: value.long(), r"floating-point values for .*up\.\w+, got torch\.int64"),
    "boolean": (lambda value: value > 0, r"floating-point values for .*, got torch\.bool"),
    "complex": (lambda value: value + 0j, r"floating-point values for .*, got torch\.complex64"),
    "shape": (lambda value: value[..., :-1], r"expected \((32, 16|4, 3, 8)\) for .*up\.\w+, got \((32, 15|4, 3, 7)\)"),
}


@pytest.fixture
def saved(tmp_path: Path):
    """Return a function that saves an adapter of a case with a changed weight, under a chosen name."""

    def save(case: AdapterCase, change, **extra: torch.Tensor) -> Path:
        case.make_model().save_pretrained(tmp_path)
        file = tmp_path / "adapter_model.safetensors"
        weights = load_file(file)
        key = next(key for key in weights if key.endswith(case.up_key))
        changed = change(weights.pop(key))
        save_file({**weights, **extra, **({} if changed is None else {key: changed.contiguous()})}, file)
        return tmp_path

    return save


@each_tuner
@pytest.mark.parametrize("bad", BAD_WEIGHTS)
def test_a_refused_file_leaves_no_adapter(case: AdapterCase, bad: str, saved):
    change, message = BAD_WEIGHTS[bad]
    folder = saved(case, change)
    model = case.make_model()
    keys, expected = list(model.state_dict()), case.run(model)
    for low_cpu_mem_usage in (False, True):
        with pytest.raises(ValueError, match=message) as error:
            model.load_adapter(folder, "second", low_cpu_mem_usage=low_cpu_mem_usage)
        assert "\n" not in str(error.value)
        assert list(model.peft_config) == model.active_adapters == ["default"]
        assert list(model.state_dict()) == keys
        with pytest.raises(ValueError, match="second not found"):
            model.set_adapter("second")
    assert torch.equal(case.run(model), expected)
    # An adapter that was there before stays as it is.
    with pytest.raises(ValueError, match=message):
        model.load_adapter(folder, "default")
    assert torch.equal(case.run(model), expected)


@each_tuner
def test_a_refused_first_file_leaves_the_plain_backbone(case: AdapterCase, saved):
    folder = saved(case, lambda value: None)
    for low_cpu_mem_usage in (False, True):
        backbone = case.make_backbone()
        with pytest.raises(ValueError, match="1 missing"):
            PeftModel.from_pretrained(backbone, folder, low_cpu_mem_usage=low_cpu_mem_usage)
        plain = case.make_backbone()
        assert list(backbone.state_dict()) == list(plain.state_dict())
        assert torch.equal(case.run(backbone), case.run(plain))


@each_tuner
def test_trained_weights_survive_a_refused_file(case: AdapterCase, saved):
    folder = saved(case, lambda value: value)
    model = PeftModel.from_pretrained(case.make_backbone(), folder, is_trainable=True)
    folder = saved(case, lambda value: None)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.01  # as some optimizers do
    expected = case.run(model)
    with pytest.raises(ValueError, match="1 missing"):
        model.load_adapter(folder, "default", is_trainable=True)
    assert torch.equal(case.run(model), expected)


@each_tuner
def test_weights_that_do_not_belong_to_the_adapter_are_refused(case: AdapterCase, saved):
    """peft loads or ignores them."""
    block = f"{case.block_list}.0"
    backbone = case.make_backbone()
    frozen = next(key for key in backbone.state_dict() if key.startswith(block))
    for key, value in ((f"base_model.model.{frozen}", backbone.state_dict()[frozen]), ("foreign", torch.ones(1))):
        folder = saved(case, lambda value: value, **{key: value.clone()})
        with pytest.raises(ValueError, match=r"0 missing \[\], 1 unexpected"):
            PeftModel.from_pretrained(case.make_backbone(), folder)


@each_tuner
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": "16"}, "dim='16': expected int; correct it"),
        ({"dim": True}, "dim=True: expected int"),
        ({"dim": 16.0}, r"dim=16\.0: expected int"),
        ({"dim": 16 * 10**8}, "dim=1600000000: expected a size from 1 to 16,384"),
        ({"scale": None}, "scale=None: expected float"),
        ({"scale": float("nan")}, "scale=nan: expected a finite number"),
        ({"target_modules": "("}, r"target_modules='\(': expected a regular expression, got an invalid one"),
        ({"target_modules": [3]}, r"target_modules=\[3\]: expected list\[str\] or set\[str\] or str or None"),
        ({"layers_to_transform": [True]}, r"layers_to_transform=\[True\]: expected at least one block"),
        ({"dimm": 16}, r"dimm: expected a field of \w+, got an unknown name; use dim"),
        ({"from_the_future": 1}, r"from_the_future: expected a field of \w+, got an unknown name; remove it"),
        ({"init_weights": 1}, "init_weights=1: expected str"),
    ],
)
def test_bad_fields_of_a_config_file(case: AdapterCase, changes: dict, message: str, saved):
    """peft drops unknown fields with a warning, and passes on values of any type."""
    folder = saved(case, lambda value: value)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    for load in (
        lambda: PeftConfig.from_pretrained(folder),
        lambda: type(case.make_config()).from_pretrained(folder),
        lambda: PeftModel.from_pretrained(case.make_backbone(), folder),
    ):
        with pytest.raises(ValueError, match=message) as error:
            load()
        assert "\n" not in str(error.value)
