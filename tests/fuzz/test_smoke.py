"""A few inputs per target, so that the targets stay valid; `make fuzz` tries many more."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.checks import problem
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_valid_files_are_read_and_mutated_ones_are_read_or_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = TARGETS[name]
    seeds = target.seeds()
    for data in seeds:
        target.read(data)

    @settings(
        max_examples=12,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=target.inputs(seeds))
    def check(data):
        assert problem(target, data) is None

    check()
