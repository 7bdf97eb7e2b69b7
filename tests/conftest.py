"""Settings and fixtures shared by all tests: offline, seeded, tiny backbones."""

from __future__ import annotations

import os
from importlib.metadata import version

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any Hugging Face import: tests must not use the network

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.reference import FIXTURES

pytest_plugins = ["tests.helpers.toy_fixtures"]


def pytest_report_header() -> str:
    packages = ("torch", "transformers", "peft", "accelerate", "datasets", "huggingface_hub", "safetensors")
    return "versions: " + ", ".join(f"{name} {version(name)}" for name in packages)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _cpu_without_bf16_instructions():
    """The precision auto is the same on every CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detris_peft.precision.cpu_computes_bf16", lambda: False)
        yield


@pytest.fixture(scope="session")
def reference():
    """Load a reference file: `reference("tiny_eval")`."""
    return lambda name: load_file(FIXTURES / f"{name}.safetensors")
