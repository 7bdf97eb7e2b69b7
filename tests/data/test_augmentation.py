"""Augmented samples stay correct: image, mask and sentence agree."""

from __future__ import annotations

import importlib.util
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from detris_peft.data import EvaluationSamples, TrainingSamples, load_refer
from detris_peft.data.augmentation import RandomAugmentation, can_be_flipped, swap_sides
from detris_peft.data.refshapes import write_refshapes
from detris_peft.data.samples import Sample
from detris_peft.defaults import CLIP_MEAN


def augmentation(*args, **options):
    return RandomAugmentation(*args, image_mean=CLIP_MEAN, **options)


FLIP = augmentation(flip=1.0, scale=(1.0, 1.0), color=0.0)


def sample(mask=None, sentence="the cup", side=32, image=None):
    mask = np.zeros((side, side), np.uint8) if mask is None else mask
    original = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    return Sample(Image.fromarray(original) if image is None else image, sentence, mask, 7)


def augmented(augment, one, seed=0):
    return augment(one, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("sentence", "swapped"),
    [
        ("the circle on the left", "the circle on the right"),
        ("leftmost cup, RIGHT of the Left plate", "rightmost cup, LEFT of the Right plate"),
        ("left-hand man, right side, lefthand, righty", "right-hand man, left side, righthand, lefty"),
        ("second from right (left one's hat)", "second from left (right one's hat)"),
        ("facing leftwards", "facing rightwards"),
        ("bright upright copyright", "bright upright copyright"),
        ("links: der Apfel", "links: der Apfel"),
        ("guy on R, lft of it", "guy on L, rgt of it"),
        ("l-shaped sofa, l'homme", "l-shaped sofa, l'homme"),
        ("", ""),
    ],
)
def test_left_and_right_are_exchanged(sentence, swapped):
    assert swap_sides(sentence) == swapped
    assert swap_sides(swapped) == sentence


@pytest.mark.parametrize(
    ("sentence", "flips"),
    [
        ("the man right behind the bench", False),
        ("the one right next to it", False),
        ("right in front", False),
        ("the man on the right behind the bench", True),
        ("guy on right in red", True),
        ("far right in the middle", True),
        ("cup right of the plate", True),
        ("leftover pizza", True),
        ("the plate left of it", True),
        ("a girl's hat, and the man in black", True),
        ("the cup left on the table", False),
        ("the only slice left", False),
        ("what is left of the cake", False),
        ("all that's left", False),
        ("no slices left", False),
        ("the cup with the least water left", False),
        ("left overs", False),
        ("the bag left for you", False),
        ("looks right into the camera", False),
        ("the right way up", False),
        # The side depends on the direction of reading, unless the sentence names one.
        ("second giraffe from left", True),
        ("2nd giraffe from left", True),
        ("2nd giraffe", False),
        ("first giraffe", False),
        ("the last one in the row", False),
        # Words and signs for a direction that are not exchanged.
        ("the west wing", False),
        ("donut at 3 o'clock", False),
        ("the hand at nine on the clock", False),
        ("the plate at 3:00", False),
        ("the driver's side door", False),
        ("the cup ->", False),
        ("the cup \N{LEFTWARDS BLACK ARROW}", False),
        # Other languages, with and without letters outside of ASCII.
        ("links", False),
        ("die Tasse links", False),
        ("la tasse de gauche", False),
        ("la tasse \N{LATIN SMALL LETTER A WITH GRAVE} droite", False),
        ("la taza de la izquierda", False),
        ("de rechter man", False),
        ("soldaki bardak", False),
        ("\u5de6", False),
        ("\u0447\u0430\u0448\u043a\u0430 \u0441\u043b\u0435\u0432\u0430", False),
        ("", False),
    ],
)
def test_only_sentences_known_to_be_true_of_the_mirrored_image_are_flipped(sentence, flips):
    assert can_be_flipped(sentence) == flips
    mask = np.eye(32, dtype=np.uint8)[:, :9].repeat(4, axis=1)[:, :32].copy()
    one = augmented(FLIP, sample(mask, sentence))
    np.testing.assert_array_equal(one.mask, mask[:, ::-1] if flips else mask)
    assert one.sentence == (swap_sides(sentence) if flips else sentence)


def test_most_typical_expressions_are_flipped():
    """Expressions in the style of RefCOCO; the words that are missing in the list are rare."""
    expressions = """
        woman in red shirt, zebra with head down, pizza closest to us, the guy wearing glasses, umpire behind catcher,
        baby elephant with trunk up, half of sandwich, red double decker bus, surfer in blue wetsuit, lady with purse,
        chair nobody is sitting in, vase with yellow flowers, teddy bear with bow tie, boy in blue hoodie looking down,
        bearded man, zebra's butt, old man reading newspaper, person with dark skin, dude in black, old car,
        white fluffy dog, lady in polka dots, donut with sprinkles, woman with ponytail, reflection of man in mirror,
        orange with sticker, blond woman texting, horse being ridden, refrigerator with magnets, sail boat
    """
    flips = [can_be_flipped(expression.strip()) for expression in expressions.split(",")]
    assert sum(flips) >= 0.9 * len(flips)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_refshapes(root, train=30, val=1, test=1, image_size=64, place=1.0, relation=0.0)
    return root, load_refer(root, "refshapes", "unc", "train")


def test_a_flipped_sentence_names_the_side_of_the_flipped_target(shapes):
    """RefShapes uses "on the left" for shapes in the left part of the image; this must hold for flipped samples."""
    _, rows = shapes
    sides = Counter()
    samples = EvaluationSamples(rows, "all")
    for one in (samples[index] for index in range(len(samples))):
        flipped = augmented(FLIP, one)
        np.testing.assert_array_equal(flipped.mask, one.mask[:, ::-1])
        before, after = (np.asarray(each.image, np.int16) for each in (one, flipped))
        assert np.abs(after - before[:, ::-1]).max() <= 1
        for words, left in (("on the left", True), ("on the right", False)):
            if words in flipped.sentence:
                center = np.nonzero(flipped.mask)[1].mean()
                assert (center < flipped.mask.shape[1] / 2) == left, (one.sentence, flipped.sentence)
                sides[words] += 1
    assert min(sides["on the left"], sides["on the right"]) >= 3


def test_augmentation_depends_on_its_generator_only_and_keeps_the_state_of_pytorchs(shapes):
    augment = augmentation()
    one = EvaluationSamples(shapes[1])[0]
    state = torch.get_rng_state()
    first, again, other = (augmented(augment, one, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.image.tobytes() == again.image.tobytes() != other.image.tobytes()
    np.testing.assert_array_equal(first.mask, again.mask)
    # In an epoch it depends on seed, epoch and row, not on the reading order.
    samples, backwards = (TrainingSamples(shapes[1], 5, augment=augment) for _ in range(2))
    images = [samples[i].image.tobytes() for i in range(6)]
    assert [backwards[i].image.tobytes() for i in reversed(range(6))] == images[::-1]
    backwards.set_epoch(1)
    positions = [backwards.order.tolist().index(row) for row in samples.order[:6]]
    assert [backwards[position].image.tobytes() for position in positions] != images


def test_image_and_mask_are_scaled_together_and_padded_with_the_mean():
    mask = np.zeros((41, 61), np.uint8)
    mask[10:30, 20:40] = 1
    image = np.where(mask[..., None] == 1, 255, 0).astype(np.uint8).repeat(3, axis=2)
    for factor in (0.5, 2.0):
        one = augmented(augmentation(0.0, (factor, factor), 0.0), sample(mask, image=Image.fromarray(image)))
        assert one.mask.sum() == pytest.approx(mask.sum() * factor**2, rel=0.1)
        disagreeing = (np.asarray(one.image)[..., 0] > 127) != (one.mask == 1)
        assert not disagreeing[5:-5, 5:-5][10:21, 15:36].any()
        if factor < 1:
            np.testing.assert_array_equal(np.asarray(one.image)[0, 0], [123, 117, 104])
    # A large JPEG may be decoded at half size; its mask is downsampled to the same size.
    half = Image.fromarray(image[::2, ::2])
    one = augmented(augmentation(0.0, (0.5, 0.5), 0.0), sample(mask, image=half))
    assert (one.image.size, one.mask.shape) == ((31, 21), (21, 31))
    assert one.mask.sum() == pytest.approx(mask.sum() / 16, rel=0.2)
    assert ((np.asarray(one.image)[..., 0] > 200) <= (one.mask == 1)).all()


def test_the_target_never_leaves_the_image():
    mask = np.zeros((32, 32), np.uint8)
    mask[0, 0] = 1  # leaves the image when scaled up, vanishes when scaled down
    augment = augmentation(flip=0.5, scale=(0.4, 3.0))
    for seed in range(30):
        one = augmented(augment, sample(mask), seed)
        assert one.mask.any()
        assert set(np.unique(one.mask)) <= {0, 1}
        assert one.mask.dtype == np.uint8
    assert not augmented(augment, sample()).mask.any()  # no target


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "CMYK"])
def test_images_of_any_mode_become_rgb(mode):
    ramp = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    image = Image.fromarray(ramp).convert(mode)
    assert image.mode == mode
    one = augmented(augmentation(0.0, (1.0, 1.0), 0.0), sample(image=image))
    assert (one.image.mode, one.image.size) == ("RGB", (32, 32))
    expected = np.asarray(image.convert("L"), np.int16)
    assert np.abs(np.asarray(one.image.convert("L"), np.int16) - expected).max() <= 1


def test_16_bit_images_and_their_sentences_are_unchanged():
    deep = Image.fromarray(np.full((32, 32), 40_000, np.uint16))
    one = augmented(augmentation(flip=1.0), sample(image=deep, sentence="on the left"))
    assert (one.image, one.sentence) == (deep, "on the left")


def test_colors_change_within_the_limit():
    for value in (0, 255):
        flat = Image.new("RGB", (8, 8), (value,) * 3)
        for seed in range(5):
            pixels = np.asarray(augmented(augmentation(0, (1, 1), 0.5), sample(image=flat), seed).image)
            assert pixels.min() >= min(value, 127)  # black stays black, white is half as bright at most
            assert pixels.max() <= value
    gray = Image.new("RGB", (8, 8), (100, 100, 100))
    seen = {
        augmented(augmentation(0, (1, 1), 0.2), sample(image=gray), seed).image.getpixel((0, 0))[0]
        for seed in range(20)
    }
    assert len(seen) > 5
    assert min(seen) >= 79
    assert max(seen) <= 121


def test_values_out_of_range_and_a_missing_kornia_raise(monkeypatch):
    for fields in ({"flip": 1.5}, {"scale": (0.0, 1.0)}, {"scale": (1.2, 1.0)}, {"color": 1.0}):
        with pytest.raises(ValueError, match=f"expected flip in .*, got .*{next(iter(fields))}="):
            augmentation(**fields)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "detris_peft.data.augmentation.transforms.find_spec", lambda name: None if name == "kornia" else real(name)
    )
    with pytest.raises(ValueError, match=r"expected the package kornia to be installed; run: pip install kornia\.$"):
        augmentation()
