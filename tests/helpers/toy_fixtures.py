"""A tiny run's data, model and processor; `root` also serves other tests."""

from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState

from tests.helpers import toy_run


@pytest.fixture(autouse=True)
def _one_accelerator_a_test():
    """accelerate keeps precision and devices for the process; each test is a run of its own."""
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
