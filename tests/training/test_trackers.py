"""Calls of trackers other than TensorBoard, which test_trainer.py tests."""

from __future__ import annotations

import sys
import types

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image

from detris_peft.training.trackers import Trackers


class Recorder(GeneralTracker):
    requires_logging_directory = False

    def __init__(self, name):
        self.name = name
        self.calls = []
        super().__init__()

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.calls.append(("options", values))

    def log(self, values, step=None):
        self.calls.append(("log", values, step))

    def log_images(self, values, step=None):
        self.calls.append(("images", values, step))

    def finish(self):
        self.calls.append(("finish",))


def test_each_tracker_receives_options_numbers_images_and_the_end(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(Image=lambda image: ("trackio", image.size)))
    Image.new("RGBA", (6, 4)).save(tmp_path / "grid.png")
    recorders = [Recorder("wandb"), Recorder("trackio")]
    trackers = Trackers(Accelerator(cpu=True, log_with=recorders))
    trackers.start({"epochs": 2, "milestones": [1], "resume": None})
    trackers.log({"train/loss": 0.5}, 3)
    trackers.log_image("predictions", tmp_path / "grid.png", 4)
    trackers.end()
    for recorder in recorders:
        assert recorder.calls[0] == ("options", {"epochs": 2, "milestones": "[1]", "resume": "None"})
        assert recorder.calls[1] == ("log", {"train/loss": 0.5}, 3)
        assert recorder.calls[3] == ("finish",)
    kind, values, step = recorders[0].calls[2]
    assert (kind, step) == ("images", 4)
    assert [(image.size, image.mode) for image in values["predictions"]] == [((6, 4), "RGB")]
    assert recorders[1].calls[2] == ("log", {"predictions": ("trackio", (6, 4))}, 4)


def test_without_trackers_nothing_happens(tmp_path):
    trackers = Trackers(Accelerator(cpu=True))
    trackers.start({})
    trackers.log({"train/loss": 0.5}, 1)
    trackers.log_image("predictions", tmp_path / "none.png", 1)
    trackers.end()
