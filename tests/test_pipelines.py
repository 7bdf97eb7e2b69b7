"""`pipeline("referring-image-segmentation")`: forms of input, equality with the predictor, loading, errors."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor
from detris_peft.pipelines import TASK, ReferringImageSegmentationPipeline, register
from detris_peft.prediction import DetrisPredictor, image_loading
from detris_peft.tokenization_detris import train_tokenizer
from tests.docs_commands.extraction import python_blocks
from tests.helpers.checkpoints import make
from tests.helpers.tiny_models import image_encoder, text_encoder

A, B, C = "the red mug", "a table", "left"
# One image in the role of each name; the sizes differ.
SIZES = {"photo": (60, 40), "wide": (90, 20), "tall": (33, 70)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    image_encoder().save_pretrained(folder / "vision")
    text_encoder().save_pretrained(folder / "text")
    model = make(folder)
    model.save_pretrained(folder / "best")
    processor = DetrisProcessor.from_config(model.config, train_tokenizer([A, B, C], 60))
    # With this field, images of a batch have different canvases, which a loader of transformers could not batch.
    processor.keep_aspect_ratio = True
    processor.save_pretrained(folder / "best")
    for i, (name, size) in enumerate(SIZES.items()):
        pixels = np.random.default_rng(i).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder / "best"


@pytest.fixture(scope="module")
def pipe(checkpoint):
    return pipeline(TASK, model=str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return DetrisPredictor.from_pretrained(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def images(checkpoint):
    return {name: Image.open(checkpoint.parent / f"{name}.png") for name in SIZES}


@pytest.fixture(scope="module")
def threshold(predictor, images):
    """A threshold at which a mask is neither empty nor full."""
    return float(np.median(predictor(images["photo"], A, return_probabilities=True).probabilities))


def assert_equal(results, predictions):
    """Assert that the results of one image are those of a predictor with the same batches."""
    assert [result["label"] for result in results] == [prediction.text for prediction in predictions]
    for result, prediction in zip(results, predictions, strict=True):
        assert {*result} == {"score", "label", "mask"}
        assert result["score"] == prediction.score
        assert result["mask"].mode == "L"
        assert np.array_equal(np.asarray(result["mask"]), prediction.mask * np.uint8(255))


def test_one_image_gives_a_list_with_a_dict_per_sentence(pipe, predictor, images, checkpoint, threshold):
    photo = images["photo"]
    (result,) = pipe(photo, text=A, threshold=threshold)
    assert_equal([result], [predictor(photo, A, threshold)])
    assert result["mask"].size == photo.size
    assert {*np.unique(result["mask"])} == {0, 255}
    expected = predictor(photo, [A, B, C], threshold)
    path = checkpoint.parent / "photo.png"
    for image in (photo, path, str(path), np.asarray(photo), torch.from_numpy(np.array(photo)).permute(2, 0, 1)):
        assert_equal(pipe(image, text=[A, B, C], threshold=threshold), expected)
    assert_equal(pipe({"image": photo, "text": (A, B, C)}, threshold=threshold), expected)
    (empty,) = pipe(photo, text=A, threshold=1.0)
    assert (empty["score"], empty["mask"].getextrema()) == (0.0, (0, 0))


class Rows(torch.utils.data.Dataset):
    """A dataset whose items have other columns as well, and that raises no IndexError at its end."""

    def __init__(self, images):
        self.rows = [
            {"image": image, "text": text, "id": 1} for image, text in zip(images, (A, [B, C], B), strict=True)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index % len(self.rows)]


def test_several_images_give_a_list_per_image(pipe, predictor, images, threshold):
    photo, wide, tall = images.values()
    rows = Rows([photo, wide, tall])
    keywords = {"threshold": threshold, "batch_size": 3}
    same = [pipe([photo, wide, tall], text=A, **keywords), pipe((i for i in (photo, wide, tall)), text=A, **keywords)]
    same.append(pipe(KeyDataset(rows, "image"), text=A, **keywords))
    expected = [*predictor.stream([(image, A) for image in (photo, wide, tall)], threshold)]
    for results in same:
        for result, prediction in zip(results, expected, strict=True):
            assert_equal(result, [prediction])
    own = [pipe([photo, wide, tall], text=[A, [B, C], B], **keywords), pipe([*rows.rows], **keywords)]
    own += [pipe(rows, **keywords), pipe(iter(rows.rows), **keywords)]
    pairs = [(photo, A), (wide, B), (wide, C), (tall, B)]
    one, two, three, four = DetrisPredictor(predictor.model, predictor.processor, "cpu", batch_size=3).stream(
        pairs, threshold
    )
    for results in own:
        for result, predictions in zip(results, ([one], [two, three], [four]), strict=True):
            assert_equal(result, predictions)
    batch = torch.from_numpy(np.stack([np.asarray(photo)] * 2))
    assert [len(result) for result in pipe(batch, text=[[A, B], C])] == [2, 1]
    assert pipe([], text=A) == []
    assert [*pipe((i for i in ()), text=A)] == []


def test_batches_are_full_and_an_image_is_decoded_once(pipe, images, monkeypatch):
    """Sentences of consecutive images share a forward pass. A generator is read no further than the next batch."""
    decoded, batches, read = [], [], []
    prepare, forward = pipe.predictor.prepare, pipe.forward
    monkeypatch.setattr(pipe.predictor, "prepare", lambda image: decoded.append(image) or prepare(image))
    monkeypatch.setattr(
        pipe, "forward", lambda items, **kwargs: batches.append(len(items)) or forward(items, **kwargs)
    )
    rows = [{"image": image, "text": [A, B]} for image in images.values()]

    def generator():
        for row in rows:
            read.append(row)
            yield row

    results = iter(pipe(generator(), batch_size=3))
    assert len(next(results)) == 2
    assert (len(read), batches) == (2, [3])
    assert len([*results]) == 2
    assert (len(decoded), batches) == (3, [3, 3])


def test_model_and_processor_may_be_passed(checkpoint, pipe, images):
    model = DetrisForReferringSegmentation.from_pretrained(checkpoint).train()
    passed = pipeline(TASK, model=model, processor=DetrisProcessor.from_pretrained(checkpoint), device="cpu")
    assert passed(images["wide"], text=A) == pipe(images["wide"], text=A)
    assert model.training


def test_device_and_dtype(checkpoint, images):
    low = pipeline(TASK, model=checkpoint, device=-1, dtype="bfloat16")
    assert low.model.dtype == low.model.projector.sentence_proj.weight.dtype == torch.bfloat16
    assert low.device == low.model.device == torch.device("cpu")
    assert low(images["wide"], text=A)[0]["mask"].size == (90, 20)


def test_a_pipeline_is_saved_as_a_checkpoint(pipe, images, tmp_path):
    """And not with a copy of the pipeline's code, which could be executed only with `trust_remote_code`."""
    pipe.save_pretrained(tmp_path / "saved")
    assert not [*(tmp_path / "saved").rglob("*.py")]
    assert pipeline(TASK, model=tmp_path / "saved", device="cpu")(images["tall"], text=A) == pipe(
        images["tall"], text=A
    )


def test_code_of_the_documentation_runs(checkpoint, images, tmp_path, monkeypatch):
    """All of docs/hub.md but the push, which `modeling/test_hub.py` tests."""
    monkeypatch.chdir(tmp_path)
    images["photo"].save("photo.jpg")
    shutil.copytree(checkpoint.parent, "runs/b")
    scope: dict = {}
    for code in python_blocks("docs/hub.md"):
        if "push_folder" not in code:
            exec(code.replace("user/name", "runs/b/best"), scope)
    assert scope["prediction"].size == (40, 60)
    assert "dataset:\n    id: user/dataset\n" in (tmp_path / "runs/b/best/.eval_results/detris_peft.yaml").read_text()


def test_registering_again_has_no_effect(monkeypatch):
    assert PIPELINE_REGISTRY.supported_tasks[TASK]["impl"] is ReferringImageSegmentationPipeline
    monkeypatch.setattr(PIPELINE_REGISTRY, "register_pipeline", None)  # would print a warning
    register()


def test_only_urls_that_are_passed_are_downloaded(pipe, images, monkeypatch):
    monkeypatch.setattr(image_loading, "fetch_image", lambda url: images["photo"])
    url = "http://example.com/photo.png"
    assert pipe(url, text=A) == pipe(images["photo"], text=A)
    rows = Rows([url] * 3)
    with pytest.raises(ValueError, match=r"http://example\.com/photo\.png: expected"):
        [*pipe(rows)]


@pytest.mark.parametrize(
    ("image", "keywords", "error", "message"),
    [
        ("photo", {}, ValueError, r"text: expected a sentence or several, got none; pass text="),
        ("photo", {"text": []}, ValueError, r"text: expected a sentence or several, got none; pass text="),
        ("photo", {"text": [A, " "]}, ValueError, r"text: expected a sentence, got only whitespace"),
        ("photo", {"text": 5}, TypeError, r"text: expected a sentence \(str\), got int"),
        ("photo", {"text": A, "threshold": 2}, ValueError, r"threshold: expected a probability from 0 to 1, got 2"),
        ("photo", {"text": A, "batch_size": 0}, ValueError, r"batch_size: expected an integer of at least 1, got 0"),
        ("photo", {"text": A, "top_k": 1}, TypeError, r"pipeline: expected text, threshold and batch_size, got top_k"),
        (["photo", "wide"], {"text": [A]}, ValueError, r"text: expected one sentence, or one entry per image, got 1"),
        ([{"image": "photo", "text": A}, {"text": A}], {}, ValueError, r"image: .* got {'text'}; add the image"),
        (iter(["photo"]), {"text": [A]}, TypeError, r"text: expected one sentence for all images of a list_iterator"),
        ("absent.png", {"text": A}, FileNotFoundError, r"absent.png: expected an image, found no such file"),
        (5, {"text": A}, TypeError, r"image: expected an image with text=.* got int; pass one of these"),
        (None, {"text": A}, TypeError, r"image: expected an image with text=.* got NoneType; pass one of these"),
    ],
)
def test_invalid_input(pipe, images, image, keywords, error, message):
    def fill(value):
        if isinstance(value, list):
            return [fill(entry) for entry in value]
        if isinstance(value, dict):
            return {key: fill(entry) for key, entry in value.items()}
        return images.get(value, value) if isinstance(value, str) else value

    with pytest.raises(error) as caught:
        pipe(fill(image), **keywords)
    assert re.search(message, str(caught.value))
    assert "\n" not in str(caught.value)


def test_an_encoder_that_is_offloaded_to_the_disk(checkpoint, predictor, images, tmp_path):
    offload = {"device_map": {"": "disk"}, "model_kwargs": {"offload_folder": tmp_path / "offload"}}
    pipe = pipeline(TASK, model=str(checkpoint), **offload)
    assert "meta" in {weight.device.type for weight in pipe.model.parameters()}
    expected = predictor(images["photo"], A, threshold=0).score
    assert pipe(images["photo"], text=A, threshold=0)[0]["score"] == pytest.approx(expected, abs=1e-5)
    assert not hasattr(pipe.model, "hf_device_map")
