"""Mosaics: which sentences allow one, which images are chosen, and that image and mask agree."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from detris_peft import DetrisProcessor
from detris_peft.data import TrainingSamples, encode_mask, make_row, to_dataset
from detris_peft.data.augmentation import Mosaic, can_be_in_mosaic
from detris_peft.data.augmentation.similar_images import AMBIGUOUS, CANDIDATES, SimilarImages, content_words
from detris_peft.data.refshapes.expressions import REFERENCE_TYPES, describe
from detris_peft.data.refshapes.scenes import sample_scene
from detris_peft.tokenization_detris import train_tokenizer

SIZE = 40  # of the model's images
COLORS, CLOTHES, NOUNS = ("red", "blue", "green", "white"), ("shirt", "hat", "dress"), ("man", "woman", "boy")


@pytest.mark.parametrize(
    ("sentence", "allowed"),
    [
        ("the man in the red shirt", True),
        ("small purple circle", True),
        ("a girl's hat", True),
        ("horse being ridden", True),
        ("the man on the left", False),
        ("leftmost cup", False),
        ("guy on R", False),
        ("the top shelf", False),
        ("middle one", False),
        ("the man behind the bench", False),
        ("person closest to us", False),
        ("bottom right corner", False),
        ("the corners", False),
        ("circle above the triangle", False),
        ("second giraffe from left", False),
        ("2nd giraffe", False),
        ("the first one", False),
        ("biggest zebra", False),
        ("front-row seat", False),
        ("die Tasse links", False),
        ("la taza roja", False),
        ("number 23", False),
        ("", False),
    ],
)
def test_sentences_that_name_a_position_or_are_not_known_to_be_without_one_allow_no_mosaic(sentence, allowed):
    assert can_be_in_mosaic(sentence) == allowed


def test_of_refshapes_the_expressions_of_attributes_allow_a_mosaic_and_the_others_do_not():
    rng, seen = np.random.default_rng(0), Counter()
    for _ in range(30):
        scene = sample_scene(rng, 5, 0.0)
        for target in scene:
            for kind in REFERENCE_TYPES:
                for sentence in describe(scene, target, kind):
                    assert can_be_in_mosaic(sentence) == (kind == "attributes"), sentence
                    seen[kind] += 1
    assert min(seen[kind] for kind in REFERENCE_TYPES) > 20


# -- similar images ----


def random_sentences(rows=120, images=50):
    rng = np.random.default_rng(0)
    words = [*COLORS, *CLOTHES, *NOUNS, "The", "of", "a", "Man's", "hat!"]
    sentences = [
        [" ".join(rng.choice(words, rng.integers(1, 6))) for _ in range(rng.integers(1, 4))] for _ in range(rows)
    ]
    return sentences, rng.permutation(np.arange(rows) % images) + 10**12


def expected_similarity(sentence, sentences, image_ids, image):
    """Return the largest similarity of an image's sentences, by the definition."""
    words, largest = set(content_words(sentence)), 0.0
    for texts, image_id in zip(sentences, image_ids, strict=True):
        for other in map(set, map(content_words, texts if image_id == image else ())):
            contains = words <= other or other <= words
            largest = max(largest, 1.0 if contains else len(words & other) / len(words | other))
    return largest


def test_the_similarity_of_an_image_is_that_of_its_most_similar_sentence():
    sentences, image_ids = random_sentences()
    images = SimilarImages(sentences, image_ids)
    for row in range(0, len(sentences), 5):
        for index, sentence in enumerate(sentences[row]):
            expected = [expected_similarity(sentence, sentences, image_ids, image) for image in np.unique(image_ids)]
            np.testing.assert_allclose(images.similarity(row, index), expected)


def test_words_are_compared_without_case_punctuation_and_stop_words():
    assert content_words("The man's RED hat, of a boy") == ["boy", "hat", "man", "red"]
    assert content_words("the one that is") == []


def test_the_images_are_chosen_among_the_most_similar_ones_that_are_not_ambiguous():
    """The sentence has ten words. Row i shares i % 10 of them, and has five others."""
    rows = [[" ".join(f"w{number}" for number in range(10))]]
    rows += [[" ".join([*(f"w{n}" for n in range(i % 10)), *(f"x{i}y{n}" for n in range(5))])] for i in range(200)]
    images = SimilarImages(rows, np.arange(len(rows)))
    similarity = images.similarity(0, 0)
    chosen = Counter()
    for seed in range(100):
        three = images.choose(0, 0, 3, np.random.default_rng(seed))
        assert len(set(three)) == 3
        chosen.update(three)
    assert 0 not in chosen
    assert all(similarity[row] < AMBIGUOUS for row in chosen)
    allowed = np.sort(similarity[similarity < AMBIGUOUS])
    assert min(similarity[row] for row in chosen) >= allowed[-CANDIDATES]
    assert len(chosen) >= 40  # of about 60
    assert images.choose(0, 0, 3, np.random.default_rng(5)) == images.choose(0, 0, 3, np.random.default_rng(5))


def test_ambiguous_images_are_never_chosen():
    rows = [["man in red shirt"], ["red shirt"], ["man in red shirt and hat"], ["the shirt, red: a man"]]
    rows += [["man in blue shirt"], ["woman in red shirt"], ["man in red dress"]]
    images = SimilarImages(rows, np.arange(7))
    assert {*images.choose(0, 0, 3, np.random.default_rng(0))} == {4, 5, 6}
    assert images.choose(0, 0, 4, np.random.default_rng(0)) is None
    assert SimilarImages([["the one"], *rows[3:]], np.arange(5)).choose(0, 0, 1, np.random.default_rng(0)) is None


def test_several_rows_of_an_image_count_as_one_image():
    rows = [["man in red shirt"], ["blue dog"], ["man in blue shirt"], ["man in red dress"], ["woman in red shirt"]]
    images = SimilarImages(rows, np.array([7, 7, 3, 3, 9]))
    assert sorted(images.choose(0, 0, 2, np.random.default_rng(0))) == [2, 4]
    assert images.choose(0, 0, 3, np.random.default_rng(0)) is None


# -- mosaics ----


def color_of(number):
    return (20 + 2 * number, 250 - 2 * number, 7 * number % 256)


def make_rows(changes=None):
    """Return 36 rows of 12 images, each image of one color and size; the targets are the left third of an image."""
    sentences = [f"{noun} in {color} {item}" for noun in NOUNS for color in COLORS for item in CLOTHES]
    rows = []
    for number, sentence in enumerate(sentences):
        image = number % 12
        width, height = (60, 30) if image % 2 else (24, 48)
        png = BytesIO()
        Image.new("RGB", (width, height), color_of(image)).save(png, "PNG")
        mask = np.zeros((height, width), np.uint8)
        mask[:, : width // 3] = 1
        texts = [f"the {sentence}", "the left one"]
        rows.append(
            {
                **make_row(
                    image={"path": None, "bytes": png.getvalue()},
                    sentences=texts,
                    mask=encode_mask(mask, height, width),
                    ref_id=number,
                    ann_ids=[number],
                    image_id=100 + image,
                    split="train",
                    dataset="toy",
                    file_name=f"{image}.png",
                    category_id=image % 3,
                ),
                **(changes or {}).get(number, {}),
            }
        )
    return to_dataset(rows)


@pytest.fixture(scope="module")
def rows():
    return make_rows()


@pytest.fixture(scope="module")
def processor():
    return DetrisProcessor(train_tokenizer(["the man in the red shirt"], 160), image_size=SIZE)


def mosaic_samples(rows, processor, ratio=1.0, seed=0, **options):
    return TrainingSamples(rows, seed, mosaic=Mosaic(rows, processor, ratio), **options)


def read(samples):
    return [samples[index] for index in range(len(samples))]


def tiles_of(sample):
    half = SIZE // 2
    pixels = np.asarray(sample.image)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert sample.mask.shape == (SIZE, SIZE)
    places = [(slice(y, y + half), slice(x, x + half)) for y in (0, half) for x in (0, half)]
    return [(pixels[place], sample.mask[place]) for place in places]


def is_mosaic(sample):
    return sample.mask.shape == (SIZE, SIZE)


def test_a_mosaic_shows_the_image_and_three_of_other_scenes_and_only_its_own_tile_has_foreground(rows, processor):
    samples, places = mosaic_samples(rows, processor), Counter()
    mean = [round(255 * channel) for channel in processor.image_mean]
    for epoch in range(3):
        samples.set_epoch(epoch)
        for sample in read(samples):
            if sample.sentence == "the left one":
                assert not is_mosaic(sample)
                continue
            shown = [
                next(i for i in range(12) if np.abs(tile[10, 10].astype(int) - color_of(i)).max() <= 1)
                for tile, _ in tiles_of(sample)
            ]
            own = sample.ref_id % 12
            assert len(set(shown)) == 4
            assert own in shown
            for number, (tile, mask) in zip(shown, tiles_of(sample), strict=True):
                # The letterbox: 60x30 becomes 20x10, 24x48 becomes 10x20.
                area = np.s_[5:15, :] if number % 2 else np.s_[:, 5:15]
                assert np.abs(tile[area][2:-2, 2:-2].astype(int) - color_of(number)).max() <= 1
                outside = tile[:4] if number % 2 else tile[:, :4]
                assert np.abs(outside.astype(int) - mean).max() <= 1
                assert mask.any() == (number == own)
                if number == own:
                    columns = np.flatnonzero(mask.any(axis=0))
                    first, third = (0, 20 / 3) if number % 2 else (5, 10 / 3)
                    assert columns[0] == pytest.approx(first, abs=1)
                    assert columns[-1] + 1 == pytest.approx(first + third, abs=1.5)
                    assert set(np.unique(mask)) == {0, 1}
            places[shown.index(own)] += 1
    assert len(places) == 4
    assert min(places.values()) >= 5


def test_the_share_of_mosaics_is_as_configured_and_the_other_samples_do_not_change(rows, processor):
    plain, samples = TrainingSamples(rows, 3), mosaic_samples(rows, processor, 0.4, 3)
    mosaics, allowed, orders = 0, 0, []
    for epoch in range(8):
        plain.set_epoch(epoch)
        samples.set_epoch(epoch)
        made = []
        for before, after in zip(read(plain), read(samples), strict=True):
            assert (before.ref_id, before.sentence) == (after.ref_id, after.sentence)
            allowed += before.sentence != "the left one"
            if is_mosaic(after):
                made.append(after.ref_id)
            else:
                assert before.image.tobytes() == after.image.tobytes()
                np.testing.assert_array_equal(before.mask, after.mask)
        mosaics += len(made)
        orders.append(tuple(made))
    assert mosaics / allowed == pytest.approx(0.4, abs=0.1)
    assert len(set(orders)) == 8


def visits(samples):
    return [(sample.ref_id, np.asarray(sample.image).tobytes(), sample.mask.tobytes()) for sample in samples]


def test_mosaics_depend_on_seed_epoch_and_row_only(rows, processor):
    samples, again = (mosaic_samples(rows, processor, 0.5, 3, as_arrays=as_arrays) for as_arrays in (False, True))
    for each in (samples, again):
        each.set_epoch(2)
    expected = visits(read(samples))
    assert visits([again[index] for index in reversed(range(len(again)))])[::-1] == expected
    loader = DataLoader(samples, 6, num_workers=2, collate_fn=visits)
    assert [visit for batch in loader for visit in batch] == expected
    assert visits(read(mosaic_samples(rows, processor, 0.5, 4))) != expected


def test_the_image_is_augmented_before_it_becomes_a_tile(rows, processor):
    def paint(sample, rng):
        return replace(sample, image=Image.new("RGB", sample.image.size, (1, 2, 3)))

    for sample in read(mosaic_samples(rows, processor, augment=paint)):
        if is_mosaic(sample):
            own = [(tile[10, 10] == (1, 2, 3)).all() for tile, _ in tiles_of(sample)]
            assert own == [bool(mask.any()) for _, mask in tiles_of(sample)]


def test_samples_without_a_target_become_no_mosaics(rows, processor):
    samples = read(mosaic_samples(rows, processor, no_target_ratio=0.5))
    kinds = Counter((sample.no_target, is_mosaic(sample)) for sample in samples)
    assert not kinds[True, True]
    assert min(kinds[True, False], kinds[False, True]) >= 5


def test_a_sample_stays_as_it_is_if_its_target_would_not_be_visible_or_another_image_is_invalid(processor):
    point = np.zeros((30, 60), np.uint8)
    point[7, 8] = 1  # between the pixels of a tile
    rows = make_rows({1: {"mask": encode_mask(point, 30, 60)}})
    samples, mosaics = mosaic_samples(rows, processor), set()
    for epoch in range(5):
        samples.set_epoch(epoch)
        assert all(sample.mask.any() for sample in read(samples))
        mosaics |= {sample.ref_id for sample in read(samples) if is_mosaic(sample)}
    assert mosaics == {*range(36)} - {1}
    broken = make_rows({number: {"image": {"path": None, "bytes": b"x"}} for number in range(12)})
    samples = mosaic_samples(broken, processor)
    valid = [index for index in range(len(samples)) if samples.order[index] >= 12]
    assert not any(is_mosaic(samples[index]) for index in valid)


def test_rows_that_allow_no_mosaic_are_refused(rows, processor):
    with pytest.raises(ValueError, match=r"mosaic_ratio: expected at least 4 images, .*got 3 images and 3 such"):
        Mosaic(rows.select(range(3)), processor, 0.1)
    left = rows.map(lambda _: {"sentences": ["the left one"]}, features=rows.features)
    with pytest.raises(ValueError, match=r"mosaic_ratio: .*got 12 images and 0 such expressions; omit mosaic_ratio"):
        Mosaic(left, processor, 0.1)


def test_what_is_computed_in_advance_are_arrays(rows, processor):
    mosaic = Mosaic(rows, processor, 0.1)
    assert isinstance(mosaic.allowed, np.ndarray)
    assert all(isinstance(value, np.ndarray) for value in vars(mosaic.images).values())
