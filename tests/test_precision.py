"""Precisions: what auto chooses on each device, and what replaces the earlier options."""

from __future__ import annotations

import pytest
import torch

from detris_peft import precision
from detris_peft.precision import (
    cpu_computes_bf16,
    describe_precision,
    describe_replacement,
    precision_dtype,
    resolve_precision,
    with_precision,
)


@pytest.fixture
def device(monkeypatch):
    """Set whether the CPU and the GPU compute in bf16."""

    def set_device(cpu=False, gpu=False):
        monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: cpu)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: gpu)

    return set_device


@pytest.mark.parametrize(
    ("name", "computes_bf16", "training", "prediction"),
    [
        ("cpu", False, "fp32", "fp32"),
        ("cpu", True, "bf16", "bf16"),
        ("cuda:1", False, "fp32", "fp32"),
        ("cuda:1", True, "bf16", "fp32"),
        ("mps", True, "fp32", "fp32"),
    ],
)
def test_auto(device, name, computes_bf16, training, prediction):
    device(cpu=computes_bf16 and name == "cpu", gpu=computes_bf16 and name != "cpu")
    assert resolve_precision("auto", name, training=True) == training
    assert resolve_precision("auto", torch.device(name), training=False) == prediction
    for fixed in ("fp32", "bf16"):
        assert resolve_precision(fixed, name, training=True) == fixed


def test_the_default_device_is_the_first_accelerator(device, monkeypatch):
    device(cpu=True)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert resolve_precision("auto", None, training=False) == "bf16"
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
    assert resolve_precision("auto", None, training=False) == "fp32"
    assert resolve_precision("fp16", None, training=False) == "fp16"


def test_fp16_on_a_cpu_and_unknown_precisions_are_refused():
    with pytest.raises(
        ValueError, match=r"^--precision: expected auto, fp32 or bf16 on a CPU, got 'fp16'; choose one"
    ):
        resolve_precision("fp16", "cpu", training=False, option="--precision")
    with pytest.raises(ValueError, match=r"^precision: expected one of auto, fp32, bf16, fp16, got 'no'; choose one"):
        resolve_precision("no", "cpu", training=True)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True, "avx512_bf16": False}, True), ({"avx2": True}, False)],
)
def test_the_instructions_of_the_cpu_are_asked_of_torch(monkeypatch, capabilities, expected):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    monkeypatch.setattr(precision, "cpu_computes_bf16", cpu_computes_bf16)
    assert cpu_computes_bf16() is expected


def test_dtypes_and_descriptions(device):
    assert [precision_dtype(p) for p in ("fp32", "bf16", "fp16")] == [torch.float32, torch.bfloat16, torch.float16]
    device(cpu=True)
    assert describe_precision("bf16", "cpu", auto=True) == "Precision: bf16 (auto, on a CPU with bf16 instructions)"
    assert describe_precision("fp16", "cuda:0") == "Precision: fp16 (on cuda)"


@pytest.mark.parametrize(
    ("option", "value", "advice"),
    [
        ("--mixed_precision", "no", "use --precision fp32"),
        ("--mixed-precision", "bf16", "use --precision bf16"),
        ("--dtype", "bfloat16", "use --precision bf16"),
        ("dtype", "float16", "use precision: fp16"),
        ("mixed_precision", False, "use precision: fp32"),
        ("mixed_precision", "fp8", "use precision"),
        ("--dtype", None, "use --precision"),
    ],
)
def test_an_earlier_option_names_its_replacement(option, value, advice):
    message = describe_replacement(option, value)
    assert message.startswith(f"expected {'--' if option.startswith('--') else ''}precision, which replaces ")
    assert message.endswith(f"; {advice}")


def test_options_of_earlier_versions():
    assert with_precision({"a": 1, "mixed_precision": "no"}) == {"a": 1, "precision": "fp32"}
    assert with_precision({"mixed_precision": "bf16"}) == {"precision": "bf16"}
    assert with_precision({"precision": "fp16"}) == {"precision": "fp16"}
