"""Experiment trackers of accelerate, with support for images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate import Accelerator
from PIL import Image


def check_trackers(names: Sequence[str]) -> None:
    """Raise a ValueError if a tracker's package is not installed; accelerate would silently skip the tracker."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"report_to: expected the package {name} to be installed; run: pip install {name}.")


class Trackers:
    """The trackers of an accelerator. Without any, every method does nothing."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def start(self, options: Mapping[str, Any]) -> None:
        """Start the trackers and log the run's options as hyperparameters."""
        if self.accelerator.log_with:
            # Not every tracker accepts lists or None.
            plain = {name: v if isinstance(v, (int, float, str)) else str(v) for name, v in options.items()}
            self.accelerator.init_trackers("detris", config=plain)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers keyed by name."""
        self.accelerator.log(dict(values), step=step)

    def log_image(self, name: str, file: Path, step: int) -> None:
        """Log an image file if it exists."""
        if not self.accelerator.trackers or not self.accelerator.is_main_process or not file.exists():
            return
        image = Image.open(file).convert("RGB")
        for tracker in cast(list[Any], self.accelerator.trackers):
            if tracker.name == "trackio":  # accelerate's tracker has no method for images
                import trackio  # type: ignore[import-not-found]

                tracker.log({name: trackio.Image(image)}, step=step)
            elif tracker.name == "tensorboard":
                tracker.log_images({name: np.asarray(image)[None]}, step=step, dataformats="NHWC")
            else:
                tracker.log_images({name: [image]}, step=step)

    def end(self) -> None:
        """Close the trackers."""
        for tracker in cast(list[Any], self.accelerator.trackers):
            tracker.finish()
