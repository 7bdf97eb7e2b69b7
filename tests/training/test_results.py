"""What a run publishes in the model cards of `best/` and `last/`."""

from __future__ import annotations

import pytest
from accelerate import Accelerator
from PIL import Image

from detris_peft.manifest import manifest_problem
from detris_peft.training import results
from detris_peft.training.progress import Progress
from detris_peft.training.results import ResultsWriter
from tests.helpers.toy_run import arguments

NAME = "assets/detris_predictions.jpg"


def plot(model, processor, samples, file):
    """Write a small image, or none if there are no samples."""
    if samples:
        Image.new("RGB", (30, 20), samples[0]).save(file, "PNG")


@pytest.fixture
def writer(model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "plot_predictions", plot)
    monkeypatch.setattr(results, "plot_curves", lambda *_: None)
    (tmp_path / "run").mkdir()

    def create(dataset, samples, **options):
        training = arguments(tmp_path / "run", **options)
        fields = {"dataset": dataset, "val_split": "val"}
        return ResultsWriter(Accelerator(cpu=True), model, model, processor, samples, training, fields, [dataset])

    return create


def progress(*scores):
    return Progress(history=[{"mIoU": score, "epoch": i, "step": i} for i, score in enumerate(scores)])


@pytest.mark.parametrize(
    ("dataset", "card_image", "is_shown"),
    [
        ("refshapes", "auto", True),
        ("refshapes", "never", False),
        ("cups", "auto", False),  # the images of a dataset are published only if the user asks for it
        ("cups", "always", True),
    ],
)
def test_card_shows_predictions_on_generated_images_or_if_asked(writer, tmp_path, dataset, card_image, is_shown):
    writer(dataset, ["red"], card_image=card_image).write(progress(0.5))
    assert (tmp_path / "run/predictions.png").is_file()
    for folder in (tmp_path / "run/best", tmp_path / "run/last"):
        assert (folder / NAME).is_file() == is_shown
        assert (f"({NAME})" in (folder / "README.md").read_text()) == is_shown
        assert manifest_problem(folder) is None


def test_card_of_the_best_checkpoint_shows_its_own_predictions_and_benchmark(writer, tmp_path):
    options = {"card_image": "always", "hub_benchmark": ["org/cups:val:mIoU"]}
    writer("cups", ["red"], **options).write(progress(0.5))
    writer("cups", ["blue"], **options).write(progress(0.5, 0.25))
    writer("cups", [], **options).write(progress(0.5, 0.25, 0.125))
    with Image.open(tmp_path / "run/best" / NAME) as image:
        red, _, blue = image.getpixel((9, 9))
        assert red > 200 > 100 > blue
    assert "value: 50.0" in (tmp_path / "run/best/.eval_results/detris_peft.yaml").read_text()
    assert "value: 12.5" in (tmp_path / "run/last/.eval_results/detris_peft.yaml").read_text()
    assert not (tmp_path / "run/last" / NAME).exists()  # none were plotted for these weights
