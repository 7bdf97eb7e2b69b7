"""ONNX files compute the model's logits in onnxruntime, and the NumPy code of docs/deploy.md the predictor's masks."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detris_peft.export import export_model, exporter, formats
from detris_peft.export.program import largest_difference
from detris_peft.prediction import DetrisPredictor

pytestmark = pytest.mark.slow  # the conversion takes 10 seconds and more
onnxruntime = pytest.importorskip("onnxruntime")
REPOSITORY = str(Path(__file__).parents[2])
DOCUMENT = Path(REPOSITORY, "docs/deploy.md")


def test_onnx_computes_the_logits_for_any_batch(small, onnx_file):
    model, processor = small
    session = onnxruntime.InferenceSession(onnx_file)
    assert [(value.name, value.shape) for value in session.get_inputs()] == [
        ("pixel_values", ["batch", 3, 48, 48]),
        ("input_ids", ["batch", 7]),
    ]
    sentences = ["red", "a large circle on the left of the small square", "red square", "the square", "circle"]
    pixel_values, input_ids = torch.randn(5, 3, 48, 48), processor(text=sentences)["input_ids"]
    for rows in (slice(0, 1), slice(1, 4), slice(0, 5)):
        inputs = {"pixel_values": pixel_values[rows].numpy(), "input_ids": input_ids[rows].numpy()}
        (logits,) = session.run(["logits"], inputs)
        with torch.no_grad():
            expected = model(pixel_values[rows], input_ids[rows]).logits
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
    metadata = {name: json.loads(v) for name, v in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata["image_mean"] == processor.image_mean
    for path in (REPOSITORY, "site-packages", "detris_peft/"):
        assert path.encode() not in onnx_file.read_bytes(), "the file must not contain paths of this machine"
    assert (metadata["image_size"], metadata["pad_token_id"], metadata["mask_threshold"]) == (48, 0, 0.35)


def test_numpy_code_of_the_docs_predicts_the_same_masks(small, onnx_file, tmp_path, monkeypatch):
    model, processor = small
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    code, example = next((a, b) for a, b in pairwise(blocks) if "def segment" in a)
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(onnx_file.read_bytes())
    processor.tokenizer.save_pretrained(tmp_path)
    generator = np.random.default_rng(0)
    pixels = {size: generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((60, 90), (131, 47), (48, 48))}
    Image.fromarray(pixels[60, 90]).save(tmp_path / "photo.png")
    namespace: dict = {}
    exec(code + example, namespace)
    assert Image.open(tmp_path / "mask.png").size == (90, 60)

    predictor = DetrisPredictor(model, processor, device="cpu")
    long = "the small red square on the left of a large circle on the left of the red square"
    images = [*map(Image.fromarray, pixels.values()), Image.fromarray(pixels[60, 90]).convert("L")]
    for image in images:
        for sentence in ("red square", "  a large\ncircle ", long, "square &amp; circle"):
            expected = predictor(image, sentence, return_probabilities=True)
            probabilities, _ = namespace["segment"](image, sentence)
            np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-4)
            # A threshold in the middle of this model's probabilities, so that the masks are not empty.
            threshold = float(np.median(expected.probabilities))
            clear = np.abs(expected.probabilities - threshold) > 1e-4
            masks = probabilities[clear] > threshold, expected.probabilities[clear] > threshold
            assert np.array_equal(*masks)
            assert 0 < masks[0].mean() < 1
            assert clear.mean() > 0.9


def test_weights_that_are_too_large_for_one_file(small, stub_program, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "trace", lambda *_: stub_program)
    monkeypatch.setattr(formats, "MAX_SINGLE_FILE", 1000)
    file = tmp_path / "model.onnx"
    result = export_model(*small, file, "onnx")
    assert result.files == (file, tmp_path / "model.onnx.data")
    assert file.stat().st_size < 100_000 < result.files[1].stat().st_size
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in result.files:
        path.rename(moved / path.name)
    _, sample = stub_program
    run = formats.load_onnx(moved / "model.onnx")
    assert largest_difference(run, sample) < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere"]
