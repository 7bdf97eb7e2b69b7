"""Training loop: what it trains, saves, prints and refuses."""

from __future__ import annotations

import copy
import json
import os
import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor
from detris_peft.data import FEATURES, EvaluationSamples, encode_mask
from detris_peft.evaluation import evaluate
from detris_peft.metrics import ReferringSegmentationMetrics
from detris_peft.training import train, trainer
from detris_peft.training.data_loading import create_augmentation, describe_mirroring
from detris_peft.training.step import TrainingStep
from tests.helpers.toy_run import arguments

NAMES = ["mIoU", "oIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9"]


def test_a_run_writes_checkpoints_metrics_and_images(model, processor, rows, tmp_path, capsys):
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    trained = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    history = train(model, processor, *rows, arguments(tmp_path / "run"), {"dataset": "refshapes"})

    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in frozen.items())
    assert all(not torch.equal(parameters[name], value) for name, value in trained.items())
    assert [record["learning_rate"] for record in history] == pytest.approx([1e-3, 1e-4])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5  # with the precision and the lines of test_try_command.py
    assert all(name in line for name in NAMES for line in printed[1:3])
    written = json.loads((tmp_path / "run/metrics.json").read_text())
    assert written["history"] == history
    assert written["best"] == max(history, key=lambda record: record["mIoU"])
    for image in ("curves.png", "predictions.png"):
        assert (tmp_path / "run" / image).stat().st_size > 10_000
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        ".detris_peft",
        ".lock",
        "best",
        "checkpoints",
        "curves.png",
        "last",
        "metrics.json",
        "metrics.jsonl",
        "predictions.png",
        "run.json",
    ]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines == [{**record, "precision": "fp32"} for record in history]
    started = json.loads((tmp_path / "run/run.json").read_text())
    assert started["options"]["learning_rate"] == 1e-3
    assert started["options"]["dataset"] == "refshapes"
    assert started["versions"]["torch"] == torch.__version__
    assert set(started) == {"options", "seed", "command", "num_processes", "versions", "git", "machine", "earlier"}


@pytest.mark.usefixtures("no_plots")
def test_the_saved_model_has_the_scores_of_the_run(model, processor, rows, tmp_path):
    history = train(model, processor, *rows, arguments(tmp_path / "run"))
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run/last")
    samples = EvaluationSamples(rows[1])
    scores = evaluate(loaded, DetrisProcessor.from_pretrained(tmp_path / "run/last"), samples, progress=False)
    assert list(scores) == [*NAMES, "loss"]
    assert scores == pytest.approx({name: history[-1][name] for name in scores}, abs=1e-6)


def test_evaluation_counts_each_sample_once_for_any_batch_size(model, processor, rows):
    samples = EvaluationSamples(rows[1], "all")
    one_by_one = ReferringSegmentationMetrics()
    model.eval()
    for i in range(len(samples)):
        inputs = processor(images=samples[i].image, text=samples[i].sentence)
        with torch.no_grad():
            outputs = model(inputs["pixel_values"], inputs["input_ids"])
        mask = processor.post_process_referring_segmentation(outputs, inputs["target_sizes"])[0]
        one_by_one.add(prediction=mask, reference=samples[i].mask)
    expected = one_by_one.compute()
    model.train()
    for batch_size in (1, 3, 64):
        scores = evaluate(model, processor, samples, batch_size=batch_size, progress=False)
        assert scores == pytest.approx({**expected, "loss": scores["loss"]}, abs=1e-3)
    assert model.training  # the mode is restored


@pytest.mark.usefixtures("no_plots")
def test_accumulated_batches_give_the_step_of_one_large_batch(model, processor, rows, tmp_path):
    """Ten references in one step: two accumulated batches of five, and a batch of ten."""
    weights = []
    for batch_size, accumulated in ((10, 1), (5, 2)):
        twin = copy.deepcopy(model)
        freeze_batch_norm(twin)  # its batch statistics depend on the batch size
        run = arguments(
            tmp_path / str(batch_size), batch_size=batch_size, gradient_accumulation_steps=accumulated, epochs=1
        )
        train(twin, processor, rows[0].select(range(10)), rows[1], run)
        weights.append({name: p.detach() for name, p in twin.named_parameters() if p.requires_grad})
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=2e-3, rtol=0, msg=name)


def freeze_batch_norm(model):
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.train = lambda mode=True, module=module: module
            module.training = False


def test_a_non_finite_loss_stops_the_run(model, processor, rows, tmp_path):
    with torch.no_grad():
        model.projector.sentence_proj.bias.fill_(float("nan"))
    with pytest.raises(
        ValueError,
        match=r"epoch 1, batch 1, step 1: .* finite loss, got nan \(references \[.*gradient is nan in .*on_nan skip",
    ):
        train(model, processor, *rows, arguments(tmp_path / "run"))
    assert not (tmp_path / "run/last").exists()


def make_loss_nan(monkeypatch, batches):
    """Make the loss of these batches (1-based) NaN."""
    real, count = DetrisForReferringSegmentation.forward, iter(range(1, 1000))

    def forward(self, pixel_values, *args, **kwargs):
        if self.training and next(count) in batches:
            pixel_values = pixel_values * float("nan")
        return real(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(DetrisForReferringSegmentation, "forward", forward)


@pytest.mark.usefixtures("no_plots")
def test_batches_with_a_non_finite_loss_are_skipped_and_counted(model, processor, rows, tmp_path, monkeypatch, capsys):
    make_loss_nan(monkeypatch, {2, 5})
    options = arguments(tmp_path / "run", on_nan="skip", batch_size=4, gradient_accumulation_steps=2)
    history = train(model, processor, *rows, options)
    assert all(np.isfinite(value) for record in history for value in record.values())
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert "2 batches were skipped because their loss was not finite" in capsys.readouterr().out


def test_an_out_of_memory_error_suggests_options(model, processor, rows, tmp_path, monkeypatch):
    def forward(self, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    monkeypatch.setattr(DetrisForReferringSegmentation, "forward", forward)
    with pytest.raises(
        MemoryError, match=r"2\.00 GiB\.\): try a batch_size below 5 with more .*checkpointing, or precision bf16"
    ):
        train(model, processor, *rows, arguments(tmp_path / "run"))


@pytest.mark.usefixtures("no_plots")
def test_eval_steps_and_early_stopping(model, processor, rows, tmp_path, monkeypatch):
    # All evaluations are equal, so the first one stays the best.
    monkeypatch.setattr(trainer, "evaluate", lambda *_, **__: {**dict.fromkeys(NAMES, 0.5), "loss": 1.0})
    history = train(
        model, processor, *rows, arguments(tmp_path / "run", eval_steps=3, early_stopping_patience=2, epochs=9)
    )
    assert [(record["epoch"], record["step"]) for record in history] == [(1, 3), (2, 6), (3, 9)]
    assert json.loads((tmp_path / "run/metrics.json").read_text())["best"]["step"] == 3


@pytest.mark.usefixtures("no_plots")
def test_the_end_is_evaluated_for_any_eval_steps(model, processor, rows, tmp_path):
    history = train(model, processor, *rows, arguments(tmp_path / "run", eval_steps=3))
    assert [record["step"] for record in history] == [3, 6, 8]


@pytest.mark.usefixtures("no_plots")
def test_the_moving_average_is_saved_and_does_not_affect_training(model, processor, rows, tmp_path):
    twin = copy.deepcopy(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train(twin, processor, *rows, arguments(tmp_path / "plain", epochs=1))
    # After a single step, the average has 2/11 of the initial weights: the decay rises, whatever its final value.
    options = arguments(tmp_path / "run", epochs=1, batch_size=20, ema_decay=0.999)
    train(model, processor, *rows, options)
    saved = dict(DetrisForReferringSegmentation.from_pretrained(tmp_path / "run/last").named_parameters())
    weights = dict(model.named_parameters())
    for name, first in start.items():
        torch.testing.assert_close(saved[name], (2 * first + 9 * weights[name]) / 11, msg=name)
    assert any(not torch.equal(saved[name], weights[name]) for name in start)


def test_tensorboard_receives_losses_metrics_and_images(model, processor, rows, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = arguments(tmp_path / "run", report_to=["tensorboard"], logging_steps=2)
    history = train(model, processor, *rows, options)
    events = EventAccumulator(str(tmp_path / "run/detris")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6, 8]
    for name in (*NAMES, "loss"):
        logged = [event.value for event in events.Scalars(f"val/{name}")]
        assert logged == pytest.approx([record[name] for record in history])
    assert [event.step for event in events.Images("predictions")] == [4, 8]


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(("drop_last", "steps"), [(True, 2), (False, 3)])
def test_the_last_incomplete_batch_is_dropped_by_default(
    model, processor, rows, tmp_path, monkeypatch, drop_last, steps
):
    sizes = []
    real = TrainingStep.run

    def run_step(step, batch, progress):
        sizes.append(len(batch["ref_ids"]))
        return real(step, batch, progress)

    monkeypatch.setattr(TrainingStep, "run", run_step)
    monkeypatch.setattr(trainer, "evaluate", lambda *_, **__: {**dict.fromkeys(NAMES, 0.5), "loss": 1.0})
    options = arguments(tmp_path / "run", epochs=1, batch_size=9, drop_last=drop_last)
    assert train(model, processor, *rows, options)[0]["step"] == steps
    assert sizes == [9, 9, 2][:steps]


@pytest.mark.parametrize(
    ("mirror", "line"),
    [
        (
            True,
            r"augment: only images whose expression is English .* \d+ of \d+ expressions; .*--augment_mirror false",
        ),
        (False, r"augment: images are not mirrored \(augment_mirror is false\)"),
    ],
)
def test_a_run_with_augmentation_says_which_images_are_mirrored(rows, processor, tmp_path, mirror, line):
    options = arguments(tmp_path / "run", augment=True, augment_mirror=mirror)
    assert re.match(line, describe_mirroring(rows[0], options))
    assert create_augmentation(processor, options).flip == (0.5 if mirror else 0)
    assert describe_mirroring(rows[0], arguments(tmp_path / "run")) is None


@pytest.mark.usefixtures("no_plots")
def test_settings_of_accelerate_launch_are_used_and_replaced_ones_are_reported(
    model, processor, rows, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    options = arguments(tmp_path / "run", epochs=1, gradient_accumulation_steps=2)
    assert train(model, processor, *rows, options)[0]["step"] == 2
    started = json.loads((tmp_path / "run/run.json").read_text())
    assert started["options"]["precision"] == "bf16"
    assert "gradient_accumulation_steps: 2 is used" in capsys.readouterr().out
    assert os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "4"


@pytest.mark.usefixtures("no_plots")
def test_best_and_last_may_be_links(model, processor, rows, tmp_path):
    """Folders on another disk: each evaluation writes there."""
    (tmp_path / "run").mkdir()
    for name in ("best", "last"):
        (tmp_path / "disk" / name).mkdir(parents=True)
        (tmp_path / "run" / name).symlink_to(tmp_path / "disk" / name)
    train(model, processor, *rows, arguments(tmp_path / "run", epochs=3))
    for name in ("best", "last"):
        assert (tmp_path / "run" / name).is_symlink()
        DetrisForReferringSegmentation.from_pretrained(tmp_path / "disk" / name)


def test_a_tracker_that_is_not_installed_is_named(model, processor, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("detris_peft.training.trackers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"report_to: expected the package wandb .*pip install wandb"):
        train(model, processor, *rows, arguments(tmp_path / "run", report_to=["wandb"]))


def test_bf16_trains(model, processor, rows, tmp_path):
    history = train(model, processor, *rows, arguments(tmp_path / "run", precision="bf16", max_grad_norm=1.0))
    assert history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.usefixtures("no_plots")
def test_gradient_checkpointing_gives_the_same_run(model, processor, rows, tmp_path):
    twin = copy.deepcopy(model)
    plain = train(model, processor, *rows, arguments(tmp_path / "plain"))
    checkpointed = train(twin, processor, *rows, arguments(tmp_path / "twin", gradient_checkpointing=True))
    assert [r["train_loss"] for r in checkpointed] == pytest.approx([r["train_loss"] for r in plain], rel=1e-4)


def test_images_of_any_shape_train_and_score(model, processor, tmp_path):
    """keep_aspect_ratio: each image is scored on its own canvas of complete patches, and at full size."""
    rng = np.random.default_rng(0)
    records = []
    for i, (height, width) in enumerate([(40, 80), (30, 60), (40, 80), (90, 30)]):
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(tmp_path / f"{i}.png")
        mask = np.zeros((height, width), np.uint8)
        mask[5:20, 5:25] = 1
        ids = {"ref_id": i, "ann_id": i, "ann_ids": [i], "image_id": i, "sent_ids": [i], "category_id": 1}
        location = {"image": str(tmp_path / f"{i}.png"), "file_name": f"{i}.png", "split": "train", "dataset": "own"}
        content = {"sentences": ["the red circle"], "mask": encode_mask(mask, height, width), "no_target": False}
        records.append({**ids, **location, **content})
    rows = datasets.Dataset.from_list(records, features=FEATURES)
    processor.keep_aspect_ratio = True
    sizes = []

    def record_size(_, args, kwargs):
        sizes.append(tuple(kwargs["pixel_values"].shape[-2:]))

    handle = model.register_forward_pre_hook(record_size, with_kwargs=True)
    # A batch of two wide images; a batch of a wide and a tall image, which are not padded to a common canvas.
    scores = evaluate(model, processor, EvaluationSamples(rows), batch_size=2, progress=False)
    handle.remove()  # `plot_predictions` passes pixel_values by position
    assert sizes == [(24, 48), (24, 48), (48, 16)]
    assert set(scores) == {*NAMES, "loss"}
    history = train(model, processor, rows, rows, arguments(tmp_path / "run", batch_size=2, epochs=1))
    assert np.isfinite(history[0]["train_loss"])
    loaded = DetrisProcessor.from_pretrained(tmp_path / "run/last")
    assert loaded.keep_aspect_ratio
    assert loaded.patch_size == 8


def test_a_processor_of_another_image_size_is_refused(model, processor, rows, tmp_path):
    processor.image_size = 96
    with pytest.raises(ValueError, match="processor: expected image_size=48, as in the model's config, got 96"):
        train(model, processor, *rows, arguments(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
