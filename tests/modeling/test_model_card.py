"""The model card: metadata as huggingface_hub reads it, results, and code that runs."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import yaml
from huggingface_hub import EvalResultEntry, ModelCard, parse_eval_result_entries
from PIL import Image
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor
from detris_peft.manifest import manifest_problem
from detris_peft.modeling import card_image as image_module
from detris_peft.modeling.hub_benchmarks import HubBenchmark
from detris_peft.modeling.model_card import TrainingResults, model_card, write_model_card
from detris_peft.tokenization_detris import train_tokenizer
from tests.helpers.checkpoints import contents, make
from tests.helpers.tiny_models import image_encoder, text_encoder, tiny_config

RESULTS = TrainingResults(
    {"mIoU": 0.7512345678, "oIoU": 0.6, "Pr@0.5": 0.9, "gIoU": 0.5, "N-acc": 0.4, "loss": 0.2, "epoch": 3, "step": 9},
    "refcoco+",
    "testA",
    trained_on=["refcoco", "refcoco+"],
    options={"preset": "detris-b", "epochs": 3, "output_dir": "/home/me/run", "data_root": "/home/me/data"},
)


def named_config(**names):
    config = tiny_config()
    config.vision_name_or_path = names.get("vision", "facebook/dinov2-with-registers-base")
    config.text_name_or_path = names.get("text", "openai/clip-vit-base-patch16")
    return config


def python_blocks(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_metadata_is_readable_by_the_hub(tmp_path):
    (tmp_path / "README.md").write_text(model_card(named_config(), RESULTS))
    data = ModelCard.load(tmp_path / "README.md").data
    # With "peft", the Hub looks for an adapter_config.json in the root: it counts no downloads, and shows an error
    # instead of code.
    assert data.library_name == "detris-peft"
    assert {"peft", "detris_peft", "referring-image-segmentation"} <= {*data.tags}
    assert data.base_model == ["facebook/dinov2-with-registers-base", "openai/clip-vit-base-patch16"]
    assert data.base_model_relation == "adapter"
    assert data.pipeline_tag == "image-segmentation"
    assert data.license == "apache-2.0"
    assert data.datasets == ["refcoco", "refcocoplus"]
    results = {result.metric_name: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "mIoU": 0.751235,
        "oIoU": 0.6,
        "Pr@0.5": 0.9,
        "gIoU": 0.5,
        "N-acc": 0.4,
    }
    assert {(r.dataset_name, r.dataset_type, r.dataset_split, r.task_type) for r in results.values()} == {
        ("refcoco+", "refcocoplus", "testA", "image-segmentation")
    }


def test_card_without_results_shows_no_scores():
    card = ModelCard(model_card(named_config()))
    assert card.data.eval_results is None
    assert card.data.get("datasets") is None
    assert "## Results" not in card.text
    assert "## Training" not in card.text


def test_card_shows_results_and_no_local_paths():
    card = model_card(named_config(), RESULTS)
    assert "| mIoU | oIoU | Pr@0.5 | gIoU | N-acc |\n|---|---|---|---|---|\n| 75.12 | 60.00 | 90.00 |" in card
    assert "`testA` of refcoco+" in card
    assert "| epochs | 3 |" in card
    assert "/home/me" not in card
    results = TrainingResults({"mIoU": 0.5}, "/home/me/cups", "val")
    card = ModelCard(model_card(named_config(vision="/home/me/dino", text="./clip"), results))
    assert "/home/me" not in card.content
    assert "./clip" not in card.content
    assert card.data.datasets == ["cups"]
    assert card.data.get("base_model") is None


def test_code_for_peft_contains_the_revision_of_the_backbone():
    config = named_config()
    config.vision_revision = "v1"
    assert 'from_pretrained("facebook/dinov2-with-registers-base", revision="v1")' in model_card(config)


@pytest.mark.parametrize("field", ["vision_adapter", "vision_name_or_path"])
def test_code_for_peft_is_omitted_if_it_could_not_work(field):
    config = named_config()
    assert "from peft import" in model_card(config)
    setattr(config, field, None)
    assert "from peft import" not in model_card(config)


@pytest.mark.parametrize("named", [True, False])
def test_code_runs_with_local_backbones(named, tmp_path, monkeypatch):
    """`test_hub.py` runs it with backbones on the Hub."""
    image_encoder().save_pretrained(tmp_path / "vision")
    text_encoder().save_pretrained(tmp_path / "text")
    model = DetrisForReferringSegmentation.from_backbones(
        Dinov2WithRegistersModel.from_pretrained(tmp_path / "vision"),
        CLIPTextModelWithProjection.from_pretrained(tmp_path / "text"),
        tiny_config(),
    )
    names = {}
    if not named:
        model.config.vision_name_or_path = model.config.text_name_or_path = None
        names = {
            "vision_model": Dinov2WithRegistersModel.from_pretrained(tmp_path / "vision"),
            "text_model": CLIPTextModelWithProjection.from_pretrained(tmp_path / "text"),
        }
    warns = pytest.warns(UserWarning, match="does not name its vision and text backbone")
    with contextlib.nullcontext() if named else warns:
        model.save_pretrained(tmp_path / "run")
    tokenizer = train_tokenizer(["the red mug on the left"], 60)
    DetrisProcessor.from_config(model.config, tokenizer).save_pretrained(tmp_path / "run")
    write_model_card(tmp_path / "run", RESULTS)
    card = (tmp_path / "run/README.md").read_text()
    assert str(tmp_path) not in card
    assert "75.12" in card
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((50, 90, 3), np.uint8)).save("photo.jpg")
    blocks = python_blocks(card)
    assert len(blocks) == (2 if named else 1)  # the pipeline cannot be given backbones
    for block in blocks:
        exec(block.replace("path/or/repository", "run"), names)
    assert names["prediction"].mask.shape == (50, 90)
    if named:
        assert [(result["label"], result["mask"].size) for result in names["results"]] == [
            ("the red mug on the left", (90, 50)),
            ("the table", (90, 50)),
        ]
        assert names["results"][0]["score"] == pytest.approx(names["prediction"].score, abs=1e-6)


# -- image and results of benchmarks ----------------------------------------------------------------------------------


@pytest.fixture
def folder(backbones, tmp_path):
    make(backbones).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def noise(size, mode="RGB"):
    """Return a PNG of random pixels, which a JPEG cannot compress."""
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, len(mode)), np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def assert_intact(folder):
    """Assert that the manifest describes all files, and that the checkpoint loads."""
    assert manifest_problem(folder) is None
    listed = {*json.loads((folder / "manifest.json").read_text())}
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert listed == files - {"manifest.json", ".detris_peft"}
    DetrisForReferringSegmentation.from_pretrained(folder)


def test_image_is_shown_and_small_enough_for_a_web_page(folder, monkeypatch):
    monkeypatch.setattr(image_module, "MAX_BYTES", 70_000)
    write_model_card(folder, RESULTS, noise((1700, 85), "RGBA"))
    card = ModelCard.load(folder / "README.md")
    (alternative, name) = re.search(r"!\[(.*?)\]\((.*?)\)", card.text).groups()
    assert (
        alternative
        == "Predictions on the split testA of refcoco+: image with its sentence, ground truth, predicted mask"
    )
    assert 30_000 < (folder / name).stat().st_size <= 70_000
    with Image.open(folder / name) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (1600, 80))
    assert_intact(folder)
    # A later card, such as one with the scores of another split, still shows it.
    write_model_card(folder, TrainingResults({"mIoU": 0.5}, "cups [new]", "val"))
    assert "Predictions on the split val of cups _new_: image" in (folder / "README.md").read_text()
    assert_intact(folder)
    (folder / name).unlink()
    write_model_card(folder, RESULTS)
    assert name not in (folder / "README.md").read_text()
    assert_intact(folder)


def test_damaged_image_changes_nothing(folder):
    before = contents(folder)
    with pytest.raises(ValueError, match=r"expected an image"):
        write_model_card(folder, RESULTS, b"no image")
    with pytest.raises(ValueError, match=r"expected the metric cIoU, got mIoU, oIoU, .*; choose one of these"):
        write_model_card(folder, replace(RESULTS, benchmarks=[HubBenchmark("a/b", "c", "cIoU")]), noise((9, 9)))
    assert contents(folder) == before


def test_results_of_a_benchmark_are_published_once(folder):
    """As huggingface_hub reads them; the other metrics stay in `model-index`."""
    benchmarks = [HubBenchmark.parse("org/refcoco-plus:testA:oIoU"), HubBenchmark("org/all", "plus", "mIoU")]
    write_model_card(folder, replace(RESULTS, benchmarks=benchmarks))
    file = folder / ".eval_results/detris_peft.yaml"
    entries = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert entries == [
        EvalResultEntry("org/refcoco-plus", "testA", 60.0, notes="oIoU in %"),
        EvalResultEntry("org/all", "plus", 75.1235, notes="mIoU in %"),
    ]
    card = ModelCard.load(folder / "README.md")
    assert {result.metric_name for result in card.data.eval_results} == {"Pr@0.5", "gIoU", "N-acc"}
    assert "| mIoU | oIoU |" in card.text
    assert_intact(folder)
    write_model_card(folder, RESULTS)
    assert not file.exists()
    assert_intact(folder)


@pytest.mark.parametrize(
    "text", ["org/data:testA", "data:testA:mIoU", "org/data:test A:mIoU", "a/b/c:d:e", "", "a/b::mIoU"]
)
def test_invalid_names_of_benchmarks_are_refused(text):
    with pytest.raises(ValueError, match="expected user/dataset:task_id:metric, got"):
        HubBenchmark.parse(text)


@pytest.mark.parametrize("edited", [False, True])
def test_saving_other_weights_removes_the_image_and_the_results(folder, backbones, edited):
    """They belong to the earlier weights. An edited card is kept, and so is the image that it shows."""
    write_model_card(folder, replace(RESULTS, benchmarks=[HubBenchmark("org/all", "plus")]), noise((9, 9)))
    if edited:
        with (folder / "README.md").open("a") as file:
            file.write("Mine.\n")
    make(backbones).save_pretrained(folder)
    assert (folder / "assets/detris_predictions.jpg").is_file() == edited
    assert not (folder / ".eval_results").exists()
