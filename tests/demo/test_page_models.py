"""What the page reads from a visitor, and which forward passes it runs."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from detris_peft.demo.limits import DemoLimits
from detris_peft.demo.page_models import PageModel, read_image, read_sentences

TEXTS = ["the red circle", "the blue square", "the green triangle"]


def same(first, second):
    assert [p.text for p in first] == [p.text for p in second]
    for one, other in zip(first, second, strict=True):
        assert np.mean(one.mask == other.mask) > 0.999
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_another_threshold_needs_no_forward_pass_and_gives_the_same_masks(predictor, photo):
    model, image = PageModel("best", predictor), Image.open(photo).convert("RGB")
    first = model.predict(image, b"1", TEXTS[:2], 0.35)
    same(first, predictor(image, TEXTS[:2], threshold=0.35))
    threshold = float(np.median(predictor(image, TEXTS[0], return_probabilities=True).probabilities))
    other = model.predict(image, b"1", [TEXTS[1], TEXTS[0], TEXTS[2], TEXTS[0]], threshold)
    same(other, predictor(image, [TEXTS[1], TEXTS[0], TEXTS[2], TEXTS[0]], threshold=threshold))
    assert 0.3 < other[1].mask.mean() < 0.7
    assert model.forward_sentences == 3


def test_images_of_other_visitors_are_not_mixed_up(predictor, tmp_path):
    model = PageModel("best", predictor)
    images = [Image.effect_noise((50, 50), 200).convert("RGB"), Image.new("RGB", (40, 30), (250, 20, 20))]
    for digest, image in enumerate(images):
        same(model.predict(image, bytes([digest]), TEXTS[:1], 0.3), [predictor(image, TEXTS[0], threshold=0.3)])
    assert model.forward_sentences == 2


def test_the_cache_of_probabilities_is_bounded(predictor):
    image = Image.new("RGB", (50, 40))
    model = PageModel("best", predictor, cache_bytes=2 * 50 * 40 * 4)
    for _ in range(2):
        assert [p.text for p in model.predict(image, b"1", TEXTS, 0.35)] == TEXTS
    assert len(model._cache) == 2
    assert model.forward_sentences == 3 + 1  # the oldest map was removed
    small = PageModel("best", predictor, cache_bytes=100)
    small.predict(image, b"1", TEXTS, 0.35)
    assert not small._cache


def test_sentences_are_lines(limits):
    assert read_sentences("  the red \t circle\r\n\n the square ", limits) == ["the red circle", "the square"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n\n", "expected at least one sentence, got none"),
        ("a\nb\nc\nd", "expected at most 3, got 4 lines"),
        ("a\n\u200b\nc", "Sentence 2: expected a sentence"),
        ("a\n" + "b" * 41, "Sentence 2: expected at most 40 characters, got 41"),
    ],
)
def test_other_texts_are_refused(text, message, limits):
    with pytest.raises(ValueError, match=message):
        read_sentences(text, limits)


def test_large_images_are_refused_before_they_are_decoded(tmp_path, limits, monkeypatch):
    Image.new("1", (2000, 600)).save(tmp_path / "a.png")
    monkeypatch.setattr("detris_peft.demo.page_models.decode", None)
    with pytest.raises(ValueError, match=r"photo\.png: expected an image of at most 1,000,000 pixels, got 1,200,000"):
        read_image(str(tmp_path / "a.png"), "photo.png", limits)


def test_images_of_all_depths_and_orientations_are_read(tmp_path):
    limits = DemoLimits()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(np.full((20, 30), 40_000, np.uint16)).save(tmp_path / "deep.png")
    frames = [Image.new("P", (30, 20), color) for color in (0, 1)]
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    sizes = {name: read_image(str(tmp_path / name), name, limits)[0] for name in ("turned.jpg", "deep.png")}
    assert sizes["turned.jpg"].size == (20, 30)
    assert sizes["deep.png"].getpixel((0, 0)) == (156, 156, 156)
    assert read_image(str(tmp_path / "animated.gif"), "a.gif", limits)[0].mode == "RGB"


def test_limits_name_the_option():
    with pytest.raises(ValueError, match=r"--max_queue: expected 1 to 10000, got 0"):
        DemoLimits(max_queue=0)
