"""Fixtures of a tiny training run: data, model and processor. Tests in other folders use `root` too."""

from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState

from tests.helpers import toy_run


@pytest.fixture(autouse=True)
def _new_accelerator_per_test():
    """accelerate keeps precision and devices in a process-wide state; reset it between tests."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return toy_run.write_toys(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def rows(root):
    return toy_run.load_rows(root)


@pytest.fixture
def model(root):
    return toy_run.load_model(root)


@pytest.fixture
def processor(model, rows):
    return toy_run.load_processor(model.config, rows[0])


@pytest.fixture
def no_plots(monkeypatch):
    toy_run.omit_plots(monkeypatch)
