"""The choice of the samples in the figures of README.md (docs/generate_figures.py)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "docs/generate_figures.py"


def test_samples_are_those_at_the_percentiles_each_of_another_image():
    spec = importlib.util.spec_from_file_location("generate_figures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)

    ious = [0.9, 0.1, 0.5, 0.3, 0.7]
    assert figures.choose(ious, [1, 2, 3, 4, 5], [100, 50, 0]) == [0, 2, 1]
    # The sample at 50 is of the image that is shown already: the nearest one of another image takes its place.
    assert figures.choose(ious, [1, 2, 1, 4, 5], [100, 50]) == [0, 3]
