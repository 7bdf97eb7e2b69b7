"""The loop: what it trains, keeps, prints and refuses."""

from __future__ import annotations

import copy
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor
from detris_peft.data import FEATURES, EvaluationSamples, encode_mask
from detris_peft.evaluation import evaluate
from detris_peft.metrics import ReferringSegmentationMetrics
from detris_peft.training import TrainingArguments, train, trainer
from tests.helpers.toy_run import arguments

NAMES = ["mIoU", "oIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9"]


def test_a_run_leaves_checkpoints_metrics_and_images(model, processor, rows, tmp_path, capsys):
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    trained = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    history = train(model, processor, *rows, arguments(tmp_path / "run"), {"dataset": "refshapes"})

    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in frozen.items())
    assert all(not torch.equal(parameters[name], value) for name, value in trained.items())
    assert [record["learning_rate"] for record in history] == pytest.approx([1e-3, 1e-4])
    # Every name in what is printed, each epoch.
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert all(name in line for name in NAMES for line in printed)
    # What is written is what came back.
    written = json.loads((tmp_path / "run/metrics.json").read_text())
    assert written["history"] == history
    assert written["best"] == max(history, key=lambda record: record["mIoU"])
    for image in ("curves.png", "predictions.png"):
        assert (tmp_path / "run" / image).stat().st_size > 10_000
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "best",
        "checkpoints",
        "curves.png",
        "last",
        "metrics.json",
        "metrics.jsonl",
        "predictions.png",
        "run.json",
    ]
    assert [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()] == history
    started = json.loads((tmp_path / "run/run.json").read_text())
    assert started["options"]["learning_rate"] == 1e-3
    assert started["options"]["dataset"] == "refshapes"
    assert started["versions"]["torch"] == torch.__version__
    assert set(started) == {"options", "seed", "command", "processes", "versions", "git", "machine", "earlier"}


def test_the_saved_folder_scores_as_the_run_did(model, processor, rows, tmp_path):
    history = train(model, processor, *rows, arguments(tmp_path / "run"))
    loaded = DetrisForReferringSegmentation.from_pretrained(tmp_path / "run/last")
    samples = EvaluationSamples(rows[1])
    scores = evaluate(loaded, DetrisProcessor.from_pretrained(tmp_path / "run/last"), samples, progress=False)
    assert list(scores) == [*NAMES, "loss"]
    assert scores == pytest.approx({name: history[-1][name] for name in scores}, abs=1e-6)


def test_evaluation_counts_each_sample_once_whatever_the_batch(model, processor, rows):
    samples = EvaluationSamples(rows[1], "all")
    by_hand = ReferringSegmentationMetrics()
    model.eval()
    for i in range(len(samples)):
        inputs = processor(images=samples[i].image, text=samples[i].sentence)
        with torch.no_grad():
            outputs = model(inputs["pixel_values"], inputs["input_ids"])
        mask = processor.post_process_referring_segmentation(outputs, inputs["target_sizes"])[0]
        by_hand.add(prediction=mask, reference=samples[i].mask)
    expected = by_hand.compute()
    model.train()
    for batch_size in (1, 3, 64):
        scores = evaluate(model, processor, samples, batch_size=batch_size, progress=False)
        assert scores == pytest.approx({**expected, "loss": scores["loss"]}, abs=1e-3)
    assert model.training  # left as it came


def test_accumulation_gives_the_step_of_the_whole_batch(model, processor, rows, tmp_path):
    """Ten references: two batches of five accumulated are one step, as a batch of ten is (BatchNorm held still)."""
    weights = []
    for batch_size, accumulated in ((10, 1), (5, 2)):
        twin = copy.deepcopy(model)
        # BatchNorm sees the batch it is given, so only without it are the two the same step.
        hold_batch_norm(twin)
        run = arguments(
            tmp_path / str(batch_size), batch_size=batch_size, gradient_accumulation_steps=accumulated, epochs=1
        )
        train(twin, processor, rows[0].select(range(10)), rows[1], run)
        weights.append({name: p.detach() for name, p in twin.named_parameters() if p.requires_grad})
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=2e-3, rtol=0, msg=name)


def hold_batch_norm(model):
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.train = lambda mode=True, module=module: module
            module.training = False


def test_a_loss_that_is_not_finite_stops_the_run(model, processor, rows, tmp_path):
    with torch.no_grad():
        model.projector.sentence_proj.bias.fill_(float("nan"))
    with pytest.raises(
        ValueError,
        match=r"loss became nan in epoch 1, batch 1, step 1, references \[.*gradient is nan in .*on_nan skip",
    ):
        train(model, processor, *rows, arguments(tmp_path / "run"))
    assert not (tmp_path / "run/last").exists()


def spoil(monkeypatch, batches):
    """Make the loss of these batches, counted from 1, NaN."""
    real, count = DetrisForReferringSegmentation.forward, iter(range(1, 1000))

    def forward(self, pixel_values, *args, **kwargs):
        if self.training and next(count) in batches:
            pixel_values = pixel_values * float("nan")
        return real(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(DetrisForReferringSegmentation, "forward", forward)


def test_steps_that_are_not_finite_are_skipped_and_counted(model, processor, rows, tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, {2, 5})
    options = arguments(tmp_path / "run", on_nan="skip", batch_size=4, gradient_accumulation_steps=2)
    history = train(model, processor, *rows, options)
    assert all(np.isfinite(value) for record in history for value in record.values())
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert "2 batches were skipped because their loss was not finite" in capsys.readouterr().out


def test_running_out_of_memory_says_what_to_turn(model, processor, rows, tmp_path, monkeypatch):
    def forward(self, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    monkeypatch.setattr(DetrisForReferringSegmentation, "forward", forward)
    with pytest.raises(
        MemoryError, match=r"2\.00 GiB\.\): try a batch_size below 5 with more .*checkpointing, or mixed"
    ):
        train(model, processor, *rows, arguments(tmp_path / "run"))


def test_evaluation_every_few_steps_and_early_stopping(model, processor, rows, tmp_path, monkeypatch):
    # The first evaluation stays the best.
    monkeypatch.setattr(trainer, "evaluate", lambda *_, **__: {**dict.fromkeys(NAMES, 0.5), "loss": 1.0})
    history = train(
        model, processor, *rows, arguments(tmp_path / "run", eval_steps=3, early_stopping_patience=2, epochs=9)
    )
    assert [(record["epoch"], record["step"]) for record in history] == [(1, 3), (2, 6), (3, 9)]
    assert json.loads((tmp_path / "run/metrics.json").read_text())["best"]["step"] == 3


def test_the_end_is_evaluated_whatever_the_steps(model, processor, rows, tmp_path):
    history = train(model, processor, *rows, arguments(tmp_path / "run", eval_steps=3))
    assert [record["step"] for record in history] == [3, 6, 8]


def test_what_is_saved_is_the_average_and_what_is_trained_is_not(model, processor, rows, tmp_path):
    twin = copy.deepcopy(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train(twin, processor, *rows, arguments(tmp_path / "plain", epochs=1))
    # One step an epoch: the average is halfway between where it began and where the step led.
    options = arguments(tmp_path / "run", epochs=1, batch_size=20, ema_decay=0.5)
    train(model, processor, *rows, options)
    saved = dict(DetrisForReferringSegmentation.from_pretrained(tmp_path / "run/last").named_parameters())
    weights = dict(model.named_parameters())
    for name, first in start.items():
        torch.testing.assert_close(saved[name], (first + weights[name]) / 2, msg=name)
    assert any(not torch.equal(saved[name], weights[name]) for name in start)


def test_tensorboard_gets_losses_metrics_and_images(model, processor, rows, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = arguments(tmp_path / "run", report_to=["tensorboard"], logging_steps=2)
    history = train(model, processor, *rows, options)
    events = EventAccumulator(str(tmp_path / "run/detris")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6, 8]
    for name in (*NAMES, "loss"):
        logged = [event.value for event in events.Scalars(f"val/{name}")]
        assert logged == pytest.approx([record[name] for record in history])
    assert [event.step for event in events.Images("predictions")] == [4, 8]


def test_a_tracker_that_is_not_installed_is_named(model, processor, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("detris_peft.training.trackers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="report_to=wandb needs its package: pip install wandb"):
        train(model, processor, *rows, arguments(tmp_path / "run", report_to=["wandb"]))


def test_bf16_trains(model, processor, rows, tmp_path):
    history = train(model, processor, *rows, arguments(tmp_path / "run", mixed_precision="bf16", max_grad_norm=1.0))
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_gradient_checkpointing_gives_the_same_run(model, processor, rows, tmp_path):
    twin = copy.deepcopy(model)
    plain = train(model, processor, *rows, arguments(tmp_path / "plain"))
    checkpointed = train(twin, processor, *rows, arguments(tmp_path / "twin", gradient_checkpointing=True))
    assert [r["train_loss"] for r in checkpointed] == pytest.approx([r["train_loss"] for r in plain], rel=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("learning_rate", 0.0),
        ("gamma", None),
        ("milestones", 35),
        ("milestones", ["35"]),
        ("num_workers", -1),
        ("max_grad_norm", -1.0),
        ("mixed_precision", "int3"),
        ("on_nan", "ignore"),
        ("ema_decay", 1.0),
        ("save_total_limit", 0),
        ("eval_steps", -1),
        ("report_to", ["paper"]),
        ("report_to", "wandb"),
        ("resume", 3),
        ("augment", 1),
    ],
)
def test_arguments_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        TrainingArguments(**{field: value})


def test_an_unknown_selection_metric_is_named():
    with pytest.raises(ValueError, match="mIoU, oIoU"):
        TrainingArguments(selection_metric="IoU")


def test_nothing_to_train_on(model, processor, rows, tmp_path):
    with pytest.raises(ValueError, match="0 rows to train on"):
        train(model, processor, rows[0].select([]), rows[1], arguments(tmp_path))


def test_images_of_any_shape_train_and_score(model, processor, tmp_path):
    """`keep_aspect_ratio`: each batch on the smallest canvas of whole patches; masks come back at their own size."""
    rng = np.random.default_rng(0)
    records = []
    for i, (height, width) in enumerate([(40, 80), (30, 60), (40, 80), (90, 30)]):
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(tmp_path / f"{i}.png")
        mask = np.zeros((height, width), np.uint8)
        mask[5:20, 5:25] = 1
        ids = {"ref_id": i, "ann_id": i, "ann_ids": [i], "image_id": i, "sent_ids": [i], "category_id": 1}
        place = {"image": str(tmp_path / f"{i}.png"), "file_name": f"{i}.png", "split": "train", "dataset": "own"}
        what = {"sentences": ["the red circle"], "mask": encode_mask(mask, height, width), "no_target": False}
        records.append({**ids, **place, **what})
    rows = datasets.Dataset.from_list(records, features=FEATURES)
    processor.keep_aspect_ratio = True
    sizes = []

    def note_size(_, args, kwargs):
        sizes.append(tuple(kwargs["pixel_values"].shape[-2:]))

    handle = model.register_forward_pre_hook(note_size, with_kwargs=True)
    # Batches in the rows' own order for the scores: two wide images share a canvas, a wide and a tall one fill it.
    scores = evaluate(model, processor, EvaluationSamples(rows), batch_size=2, progress=False)
    handle.remove()  # the images at the end are passed by position
    assert sizes == [(24, 48), (48, 48)]
    assert set(scores) == {*NAMES, "loss"}
    history = train(model, processor, rows, rows, arguments(tmp_path / "run", batch_size=2, epochs=1))
    assert np.isfinite(history[0]["train_loss"])
    again = DetrisProcessor.from_pretrained(tmp_path / "run/last")
    assert again.keep_aspect_ratio
    assert again.patch_size == 8
