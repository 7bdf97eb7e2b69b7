"""The loop: what it trains, keeps, prints and refuses."""

from __future__ import annotations

import copy
import json

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel

from detris_peft import DenseAlignerConfig, DetrisForReferringSegmentation, DetrisProcessor, TextAdapterConfig, presets
from detris_peft.data import FEATURES, EvaluationSamples, encode_mask, load_refer
from detris_peft.data.shapes import write_refshapes
from detris_peft.evaluation import evaluate
from detris_peft.metrics import ReferringSegmentationMetrics
from detris_peft.tokenization_detris import train_tokenizer
from detris_peft.training import TrainingArguments, train

NAMES = ["mIoU", "oIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9"]


@pytest.fixture(autouse=True)
def _one_accelerator_a_test():
    """accelerate keeps precision and devices for the process; each test here is a run of its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_refshapes(root, train=10, val=4, test=1, image_size=48)
    return root


@pytest.fixture
def rows(root):
    return load_refer(root, "refshapes", "unc", "train"), load_refer(root, "refshapes", "unc", "val")


@pytest.fixture
def model(tmp_path):
    config = presets.random_backbones(presets.get("tiny"), tmp_path / "backbones")
    config.image_size = 48
    config.dropout = 0.0
    config.vision_adapter = DenseAlignerConfig(
        dim=16,
        layers_to_transform=[1],
        text_dim=64,
        cross_attention_dim=16,
        cross_attention_heads=2,
        cross_attention_dropout=0.0,
    )
    config.text_adapter = TextAdapterConfig(dim=16, layers_to_transform=[0])
    vision = Dinov2WithRegistersModel.from_pretrained(config.vision_name_or_path)
    text = CLIPTextModelWithProjection.from_pretrained(config.text_name_or_path)
    return DetrisForReferringSegmentation.from_backbones(vision, text, config)


@pytest.fixture
def processor(model, rows):
    words = [sentence for sentences in rows[0]["sentences"] for sentence in sentences]
    return DetrisProcessor.from_config(model.config, train_tokenizer(words, 160))


def arguments(folder, **changes):
    fields = {"output_dir": str(folder), "epochs": 2, "batch_size": 5, "learning_rate": 1e-3, "milestones": [1]}
    return TrainingArguments(**{**fields, "num_workers": 0, **changes})


def test_a_run_leaves_checkpoints_metrics_and_pictures(model, processor, rows, tmp_path, capsys):
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    trained = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    history = train(model, processor, *rows, arguments(tmp_path / "run"))

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
    for picture in ("curves.png", "predictions.png"):
        assert (tmp_path / "run" / picture).stat().st_size > 10_000
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "best",
        "curves.png",
        "last",
        "metrics.json",
        "predictions.png",
    ]


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
    with pytest.raises(ValueError, match=r"loss became nan in epoch 1/2, batch 1, references \["):
        train(model, processor, *rows, arguments(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


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


def test_pictures_of_any_shape_train_and_score(model, processor, tmp_path):
    """`keep_aspect_ratio`: each batch on the smallest canvas of whole patches; masks come back at their own size."""
    rng = np.random.default_rng(0)
    records = []
    for i, (height, width) in enumerate([(40, 80), (30, 60), (40, 80), (90, 30)]):
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(tmp_path / f"{i}.png")
        mask = np.zeros((height, width), np.uint8)
        mask[5:20, 5:25] = 1
        ids = {"ref_id": i, "ann_id": i, "image_id": i, "sent_ids": [i], "category_id": 1}
        picture = {"image": str(tmp_path / f"{i}.png"), "file_name": f"{i}.png", "split": "train"}
        records.append({**ids, **picture, "sentences": ["the red circle"], "mask": encode_mask(mask, height, width)})
    rows = datasets.Dataset.from_list(records, features=FEATURES)
    processor.keep_aspect_ratio = True
    sizes = []

    def note_size(_, args, kwargs):
        sizes.append(tuple(kwargs["pixel_values"].shape[-2:]))

    handle = model.register_forward_pre_hook(note_size, with_kwargs=True)
    # Batches in the rows' own order for the scores: two wide pictures share a canvas, a wide and a tall one fill it.
    scores = evaluate(model, processor, EvaluationSamples(rows), batch_size=2, progress=False)
    handle.remove()  # the pictures at the end are passed by position
    assert sizes == [(24, 48), (48, 48)]
    assert set(scores) == {*NAMES, "loss"}
    history = train(model, processor, rows, rows, arguments(tmp_path / "run", batch_size=2, epochs=1))
    assert np.isfinite(history[0]["train_loss"])
    again = DetrisProcessor.from_pretrained(tmp_path / "run/last")
    assert again.keep_aspect_ratio
    assert again.patch_size == 8
