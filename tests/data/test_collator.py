"""Batches of bytes: normalized, they have the bits of batches of floats."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from detris_peft import DetrisProcessor
from detris_peft.data import Collator, EvaluationSamples, TrainingSamples, load_folder
from detris_peft.data.augmentation import RandomAugmentation
from detris_peft.tokenization_detris import train_tokenizer

SIZES = [(40, 60), (61, 33), (50, 50), (240, 121), (7, 90)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Photos of several sizes and formats; the masks are boxes."""
    root, rng, lines = tmp_path_factory.mktemp("data"), np.random.default_rng(0), []
    for number, (height, width) in enumerate(SIZES * 2):
        name = f"{number}.{'png' if number == 2 else 'jpg'}"
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.convert("L" if number == 4 else "RGB").save(root / name)
        mask = np.zeros((height, width), np.uint8)
        mask[height // 4 : height // 2 + 2, width // 4 : width // 2 + 5] = 255
        Image.fromarray(mask).save(root / f"mask{number}.png")
        lines.append({"file_name": name, "sentences": ["the cup on the left"], "mask": f"mask{number}.png"})
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_folder(root)


@pytest.fixture
def processor():
    return DetrisProcessor(train_tokenizer(["the cup on the left"], 160), image_size=56, max_text_length=9)


@pytest.mark.parametrize("keep_aspect_ratio", [False, True])
@pytest.mark.parametrize("augment", [None, RandomAugmentation(image_mean=[0.5, 0.4, 0.3])], ids=["plain", "augmented"])
def test_batches_of_bytes_have_the_bits_of_floats(rows, processor, augment, keep_aspect_ratio):
    processor.keep_aspect_ratio = keep_aspect_ratio
    options = {"augment": augment, "image_size": 56}
    expected = Collator(processor)([*map(TrainingSamples(rows, **options).__getitem__, range(len(rows)))])
    samples = TrainingSamples(rows, **options, as_arrays=True)
    batch = Collator(processor, as_bytes=True)([*map(samples.__getitem__, range(len(rows)))])
    assert batch["pixel_bytes"].dtype == batch["label_bytes"].dtype == torch.uint8
    assert not batch.keys() & {"pixel_values", "labels"}
    normalized = processor.normalize_bytes(batch)
    assert normalized.keys() == expected.keys()
    for name in ("pixel_values", "labels", "input_ids", "target_sizes"):
        assert normalized[name].dtype == expected[name].dtype
        assert torch.equal(normalized[name], expected[name])
    for mask, other in zip(normalized["masks"], expected["masks"], strict=True):
        np.testing.assert_array_equal(mask, other)


def test_workers_send_bytes(rows, processor):
    samples = EvaluationSamples(rows, as_arrays=True)
    loader = DataLoader(samples, 4, num_workers=1, collate_fn=Collator(processor, as_bytes=True))
    expected = DataLoader(EvaluationSamples(rows), 4, collate_fn=Collator(processor))
    for batch, other in zip(loader, expected, strict=True):
        assert torch.equal(processor.normalize_bytes(batch)["pixel_values"], other["pixel_values"])


def test_decoded_arrays_are_the_images(rows):
    pytest.importorskip("simplejpeg")
    images, arrays = EvaluationSamples(rows), EvaluationSamples(rows, as_arrays=True)
    kinds = set()
    for number in range(len(rows)):
        image, array = images[number].image, arrays[number].image
        assert isinstance(image, Image.Image)  # what users get
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(array))
        kinds.add(type(array))
    assert np.ndarray in kinds
    assert len(kinds) == 2


def test_the_model_reads_floats(processor):
    with pytest.raises(ValueError, match="as_bytes: expected False with model_inputs_only"):
        Collator(processor, model_inputs_only=True, as_bytes=True)
