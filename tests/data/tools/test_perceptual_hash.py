"""Perceptual hash: copies of an image are near-duplicates, other images are not."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from detris_peft.data.tools.split.defaults import MAX_DISTANCE
from detris_peft.data.tools.split.perceptual_hash import ImageHash, group_near_duplicates, hash_image
from tests.data.tools.split_files import photo


def scene(number: int) -> Image.Image:
    """Return an image with the frequencies of a photo: the amplitude is inversely proportional to the frequency."""
    rng = np.random.default_rng(number)
    frequency = np.add.outer(np.arange(96), np.arange(128)) + 1.0
    channels = [cv2.dct((rng.standard_normal((96, 128)) / frequency).astype(np.float32), flags=1) for _ in range(3)]
    values = np.stack(channels, axis=-1) + 2 * channels[0][..., None]
    return Image.fromarray(np.clip(128 + 55 * (values - values.mean()) / values.std(), 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def distance(first: Image.Image, second: Image.Image) -> int:
    one, other = hash_image(np.asarray(first)), hash_image(np.asarray(second))
    return int((one.bits != other.bits).sum())


COPIES = {
    "resized": lambda image: image.resize((50, 41)),
    "recompressed": lambda image: jpeg(image, 20),
    "cropped": lambda image: image.crop((3, 2, image.width - 3, image.height - 2)),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "mirrored and resized": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((64, 64)),
}


@pytest.mark.parametrize("change", COPIES)
def test_copies_are_near_duplicates(change):
    for number in range(10):
        image = scene(number)
        hashes = [hash_image(np.asarray(one)) for one in (image, COPIES[change](image))]
        assert group_near_duplicates(hashes, MAX_DISTANCE) == [[0, 1]], number


def test_different_images_are_not():
    hashes = [hash_image(np.asarray(scene(number))) for number in range(60)]
    assert group_near_duplicates(hashes, MAX_DISTANCE) == [[number] for number in range(60)]


def test_the_mirrored_bits_are_those_of_the_mirrored_image():
    image = np.asarray(photo(0))
    mirrored = hash_image(np.ascontiguousarray(image[:, ::-1]))
    assert np.array_equal(hash_image(image).mirrored_bits, mirrored.bits)
    assert (mirrored.bits != hash_image(image).bits).sum() > 10


def test_similar_hashes_without_similar_thumbnails_are_not_near_duplicates():
    one = hash_image(np.asarray(photo(0)))
    other = ImageHash(one.bits, one.mirrored_bits, -one.thumbnail)
    assert group_near_duplicates([one, other], MAX_DISTANCE) == [[0], [1]]
    assert group_near_duplicates([one, one], MAX_DISTANCE) == [[0, 1]]


def test_images_of_one_color_resemble_nothing():
    flat = [hash_image(np.full((30, 40, 3), level, np.uint8)) for level in (0, 0, 128, 255)]
    assert group_near_duplicates(flat, 32) == [[0], [1], [2], [3]]


def test_the_distance_is_the_limit():
    image, changed = scene(0), scene(0).crop((4, 3, 124, 93))
    found = distance(image, changed)
    assert found > 2
    hashes = [hash_image(np.asarray(image)), hash_image(np.asarray(changed))]
    assert group_near_duplicates(hashes, found) == [[0, 1]]
    assert group_near_duplicates(hashes, found - 1) == [[0], [1]]


def test_chains_are_one_group_and_large_sets_give_the_same_groups_as_small_ones():
    """More images than are compared at once; every third one is a copy of another."""
    rng = np.random.default_rng(0)
    hashes = []
    for number in range(2200):
        if number % 3 == 2:
            hashes.append(hashes[rng.integers(number)])
            continue
        bits = rng.choice([-1, 1], 64).astype(np.float32)
        thumbnail = rng.standard_normal(64).astype(np.float32)
        mirrored = rng.choice([-1, 1], 64).astype(np.float32)
        hashes.append(ImageHash(bits, mirrored, thumbnail / np.linalg.norm(thumbnail)))
    groups = group_near_duplicates(hashes, 4)
    by_bits = {}
    for number, one in enumerate(hashes):
        by_bits.setdefault(one.bits.tobytes(), []).append(number)
    assert sorted(groups) == sorted(by_bits.values())
    assert group_near_duplicates([], 4) == []
