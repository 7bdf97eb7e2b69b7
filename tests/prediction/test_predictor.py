"""The predictor: forms of input, equality with model and processor, memory, device and precision."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from detris_peft.prediction import DetrisPredictor, Prediction
from detris_peft.prediction import predictor as predictor_module

TEXTS = ["the red circle", "blue", "the small square on the left", "green triangle"]


@pytest.fixture(scope="module")
def images(photo):
    """Three images of different sizes."""
    image = Image.open(photo)
    return [image, image.crop((5, 0, 60, 20)), image.resize((33, 70))]


def threshold_of(predictor, image, text):
    """Return a threshold at which the mask is neither empty nor full."""
    return float(np.median(predictor(image, text, return_probabilities=True).probabilities))


def same(first: Prediction, second: Prediction) -> bool:
    """Return whether two predictions are equal up to the rounding of other batch sizes."""
    return first.text == second.text and np.allclose(first.probabilities, second.probabilities, atol=1e-5)


def test_a_prediction_equals_model_and_processor(predictor, images):
    image, text = images[2], TEXTS[0]
    inputs = predictor.processor(images=image, text=text)
    with torch.no_grad():
        outputs = predictor.model(**inputs)
    sizes = inputs["target_sizes"]
    threshold = threshold_of(predictor, image, text)
    prediction = predictor(image, text, threshold, return_probabilities=True)
    process = predictor.processor.post_process_referring_segmentation
    expected = process(outputs, sizes, return_probabilities=True)[0].numpy()
    assert np.array_equal(prediction.probabilities, expected.clip(0, 1))
    assert np.array_equal(prediction.mask, process(outputs, sizes, threshold)[0].numpy())
    assert prediction.size == (70, 33)
    assert prediction.score == pytest.approx(expected[prediction.mask].mean())
    rows, columns = np.nonzero(prediction.mask)
    assert prediction.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert not prediction.no_target
    instance = predictor.processor.post_process_instance_segmentation(outputs, 0.0, threshold, sizes)[0]
    assert instance["scores"].tolist() == pytest.approx([prediction.score])
    assert instance["boxes"].tolist() == [[float(side) for side in prediction.box]]
    assert np.array_equal(instance["masks"][0].numpy(), prediction.mask)
    assert predictor.processor.post_process_instance_segmentation(outputs, 1.0)[0]["boxes"].shape == (0, 4)
    (semantic,) = predictor.processor.post_process_semantic_segmentation(outputs, sizes, threshold)
    assert semantic.dtype == torch.int64
    assert np.array_equal(semantic.numpy(), prediction.mask)
    assert predictor.processor.post_process_semantic_segmentation(outputs)[0].shape == (48, 48)


def test_any_number_of_images_and_sentences(predictor, images):
    predict = partial(predictor, return_probabilities=True)
    expected = [[predict(image, text) for text in TEXTS] for image in images]
    assert len({round(prediction.score, 4) for row in expected for prediction in row}) > 6
    for image, row in zip(images, expected, strict=True):  # more sentences than the batch size of 3
        assert all(map(same, predict(image, TEXTS), row))
    assert all(map(same, predict(images, TEXTS[0]), [row[0] for row in expected]))
    assert all(map(same, predict(images, TEXTS[:3]), [expected[i][i] for i in range(3)]))
    mixed = predict(images, [TEXTS, TEXTS[1], [TEXTS[2]]])
    assert all(map(same, mixed[0], expected[0]))
    assert same(mixed[1], expected[1][1])
    assert isinstance(mixed[2], list)
    assert same(mixed[2][0], expected[2][2])
    assert isinstance(predict([images[0]], [TEXTS[0]])[0], Prediction)


def test_every_form_of_an_image_gives_the_same_prediction(predictor, photo):
    array = np.asarray(Image.open(photo))
    tensor = torch.from_numpy(array.copy())
    predict = partial(predictor, text=TEXTS[0], return_probabilities=True)
    expected = predict(Image.open(photo))
    for form in (photo, str(photo), array, tensor, tensor.permute(2, 0, 1), tensor.permute(2, 0, 1).float() / 255):
        assert same(predict(form), expected)
    batch = torch.stack([tensor, tensor]).permute(0, 3, 1, 2)
    assert all(same(prediction, expected) for prediction in predict(batch))


def test_an_image_is_decoded_once_for_all_its_sentences(predictor, photo, images, monkeypatch):
    loaded = []
    monkeypatch.setattr(predictor_module, "load_image", lambda image: loaded.append(image) or images[0])
    predictor(photo, TEXTS)
    assert loaded == [photo]
    [*predictor.stream([(str(photo), text) for text in TEXTS] + [("b", "red"), (photo, "red")])]
    assert loaded == [photo, str(photo), "b", photo]


def test_the_model_gets_an_image_once_for_its_sentences_in_a_batch(predictor, images, monkeypatch):
    calls = []
    forward = predictor.model.forward

    def record(pixel_values, input_ids, **options):
        calls.append((len(pixel_values), len(input_ids), options["image_indices"]))
        return forward(pixel_values, input_ids, **options)

    monkeypatch.setattr(predictor.model, "forward", record)
    predictor(images[:2], [TEXTS[:2], TEXTS[2]])
    predictor(images[:2], TEXTS[:2])
    assert [call[:2] for call in calls] == [(2, 3), (2, 2)]
    assert calls[0][2].tolist() == [0, 0, 1]
    assert calls[1][2] is None


def test_a_stream_reads_its_pairs_batch_by_batch(predictor, photo):
    read = []
    pairs = ((read.append(i) or photo, TEXTS[i % 4]) for i in range(10))
    predictions = predictor.stream(pairs)
    next(predictions)
    assert len(read) == predictor.batch_size
    assert len([*predictions]) == 9


def test_an_iterable_of_images_is_a_batch(predictor, images):
    expected = predictor(images, TEXTS[:3], return_probabilities=True)
    found = predictor((image for image in images), (text for text in TEXTS[:3]), return_probabilities=True)
    assert all(map(same, found, expected))


def test_an_image_that_changes_while_it_is_streamed_is_read_again(predictor, images, tmp_path):
    pixels = [np.asarray(image.resize((50, 30))) for image in images]
    expected = [predictor(array, TEXTS[0], return_probabilities=True) for array in pixels]
    assert not same(expected[0], expected[1])
    buffer, file = pixels[0].copy(), tmp_path / "frame.png"

    def frames(item):
        for i, array in enumerate(pixels):
            buffer[:] = array
            Image.fromarray(array).save(file, compress_level=i)  # so that its size differs, besides its time
            yield item, TEXTS[0]

    for item in (buffer, file):
        assert all(map(same, predictor.stream(frames(item), return_probabilities=True), expected))


def test_images_of_any_shape_share_a_batch_when_the_aspect_ratio_is_kept(checkpoint, images):
    predictor = DetrisPredictor.from_pretrained(checkpoint, device="cpu", batch_size=8)
    predictor.processor.keep_aspect_ratio = True
    predict = partial(predictor, text=TEXTS[0], return_probabilities=True)
    expected = [predict(image) for image in images]
    assert all(map(same, predict(images), expected))


def test_an_empty_mask_is_no_target(predictor, photo):
    prediction = predictor(photo, TEXTS[0], threshold=1.0)
    assert (prediction.score, prediction.box, prediction.no_target) == (0.0, None, True)
    record = prediction.to_json("photo.png")
    assert list(record) == ["image", "text", "segmentation", "bbox", "score", "no_target"]
    assert (record["bbox"], record["score"], record["no_target"]) == (None, 0.0, True)
    assert len(prediction.to_supervision()) == 0


def test_a_prediction_in_the_forms_of_other_tools(predictor, photo):
    prediction = predictor(photo, TEXTS[0], threshold_of(predictor, photo, TEXTS[0]))
    x1, y1, x2, y2 = prediction.box
    assert prediction.to_json("a")["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    assert prediction.to_rle()["size"] == [40, 60]
    detections = prediction.to_supervision()
    assert detections.xyxy.tolist() == [[x1, y1, x2, y2]]
    assert np.array_equal(detections.mask[0], prediction.mask)
    assert detections["class_name"].tolist() == [TEXTS[0]]
    assert prediction.overlay(Image.open(photo)).size == (60, 40)


def test_no_gradients_no_warnings_and_the_mode_of_the_model_is_kept(checkpoint, photo):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor = DetrisPredictor.from_pretrained(checkpoint, device="cpu")
        expected = predictor(photo, TEXTS[0], return_probabilities=True)
    modes = [module.training for module in predictor.model.train().modules()]
    seen = []
    predictor.model.projector.register_forward_hook(
        lambda module, inputs, output: seen.append((module.training, output.requires_grad))
    )
    assert same(predictor(photo, TEXTS[0], return_probabilities=True), expected)
    assert seen == [(False, False)]
    assert [module.training for module in predictor.model.modules()] == modes


def test_the_precision_is_selectable(checkpoint, predictor, photo):
    expected = predictor(photo, TEXTS[0], return_probabilities=True)
    low = DetrisPredictor.from_pretrained(checkpoint, device="cpu", dtype="bfloat16")
    norms = [
        module for module in low.model.modules() if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d))
    ]
    in_float32 = {p for norm in norms for p in norm.parameters()}
    assert {p.dtype for p in in_float32} == {torch.float32}
    assert {p.dtype for p in low.model.parameters() if p not in in_float32} == {torch.bfloat16}
    assert low.model.dtype == torch.bfloat16
    difference = low(photo, TEXTS[0], return_probabilities=True).probabilities - expected.probabilities
    assert 0 < np.abs(difference).max() < 0.05


def test_an_encoder_that_is_offloaded_to_the_disk(checkpoint, predictor, photo, tmp_path):
    offload = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "offload"}
    offloaded = DetrisPredictor.from_pretrained(checkpoint, **offload)
    assert {weight.device.type for weight in offloaded.model.vision_model.parameters()} == {"meta", "cpu"}
    expected = predictor(photo, TEXTS[0], return_probabilities=True)
    assert same(offloaded(photo, TEXTS[0], return_probabilities=True), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], "a"), ValueError, "images: expected at least one image"),
        ((["{photo}"], ["a", "b"]), ValueError, "text: expected one sentence, or one entry per image, got 2 entries"),
        (("{photo}", []), ValueError, "text: expected a sentence or several, got none"),
        (("{photo}", " "), ValueError, "text: expected a sentence, got only whitespace"),
        ((["{photo}"] * 2, ["a", ["b", " "]]), ValueError, r"text\[1\]: expected a sentence, got only whitespace"),
        (("{photo}", [3]), TypeError, "text: expected a sentence .str., got int"),
        (("none.jpg", "a"), FileNotFoundError, "none.jpg: expected an image, found no such file"),
        ((3.5, "a"), TypeError, "image: expected a path, a PIL image"),
        ((torch.zeros(5, 6, 7), "a"), ValueError, r"expected a tensor of shape \(C, H, W\)"),
        ((torch.full((3, 6, 7), 2.0), "a"), ValueError, "expected floats from 0 to 1, got 2 to 2"),
        (("{photo}", "a", 1.5), ValueError, "threshold: expected a probability from 0 to 1, got 1.5"),
        (("{photo}", "a", np.float32(1.5)), ValueError, "threshold: expected a probability from 0 to 1"),
    ],
)
def test_invalid_arguments_are_one_line(predictor, photo, arguments, error, message):
    images, *others = arguments
    if isinstance(images, list):
        images = [str(photo)] * len(images)
    with pytest.raises(error, match=message) as raised:
        predictor(str(photo) if images == "{photo}" else images, *others)
    assert "\n" not in str(raised.value)


def test_arguments_of_the_class_are_checked(predictor, checkpoint):
    with pytest.raises(TypeError, match="model: expected a DetrisForReferringSegmentation, got str"):
        DetrisPredictor("best", predictor.processor)
    with pytest.raises(ValueError, match="batch_size: expected an integer of at least 1, got 0"):
        DetrisPredictor(predictor.model, predictor.processor, batch_size=0)
    with pytest.raises(ValueError, match="device nowhere: expected cpu"):
        DetrisPredictor.from_pretrained(checkpoint, device="nowhere")
    with pytest.raises(ValueError, match="dtype: expected float32, bfloat16 or float16, got 'int8'"):
        DetrisPredictor.from_pretrained(checkpoint, dtype="int8")
