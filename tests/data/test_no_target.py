"""Sentences that refer to nothing in an image: which ones qualify, and the samples that get them."""

from __future__ import annotations

import numpy as np
import pytest
from torch.utils.data import DataLoader

from detris_peft.data import EvaluationSamples, TrainingSamples, encode_mask, load_refer, make_row, to_dataset
from detris_peft.data.augmentation import AbsentSentences
from detris_peft.data.refshapes import write_refshapes

RATIO = 0.3
EMPTY, FULL = (encode_mask(np.full((4, 4), value, np.uint8), 4, 4) for value in (0, 1))


def make_rows(*rows):
    """Return a dataset of rows (image id, category id, sentences), without a target if the category is None."""
    return to_dataset(
        [
            make_row(
                image={"path": f"{image_id}.png", "bytes": None},
                sentences=sentences,
                mask=EMPTY if category is None else FULL,
                ref_id=number,
                ann_ids=[] if category is None else [number],
                image_id=image_id,
                category_id=-1 if category is None else category,
                split="train",
                dataset="toy",
                file_name=f"{image_id}.png",
            )
            for number, (image_id, category, sentences) in enumerate(rows)
        ]
    )


def normalized(text):
    return " ".join(text.lower().split())


def possible(rows, row):
    """Return the (row, index) of each sentence that qualifies for the image of a row, by the definition."""
    own = [other for other in rows if other["image_id"] == row["image_id"]]
    if any(other["category_id"] == -1 and not other["no_target"] for other in own):
        return set()
    texts = {normalized(text) for other in own for text in other["sentences"]}
    return {
        (number, index)
        for number, other in enumerate(rows)
        for index, text in enumerate(other["sentences"])
        if other["category_id"] not in (-1, *(each["category_id"] for each in own)) and normalized(text) not in texts
    }


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_refshapes(root, train=25, val=1, test=1, image_size=32)
    return load_refer(root, "refshapes", "unc", "train")


def random_rows():
    rng = np.random.default_rng(0)
    texts = ["a dog", " A  Dog", "the cat", "THE CAT", "cow", "a red cup", "cup"]
    categories = [1, 1, 2, 3, 4, None, -1]
    return make_rows(
        *(
            (int(rng.integers(15)), categories[rng.integers(7)], rng.choice(texts, rng.integers(1, 4)).tolist())
            for _ in range(40)
        )
    )


def check_all_choices(rows):
    """Check that exactly the sentences that qualify are drawn; return whether some image has none."""
    columns = rows.remove_columns("image").to_list()
    absent, rng = AbsentSentences(rows), np.random.default_rng(0)
    expected = [possible(columns, row) for row in columns]
    for number, qualify in enumerate(expected):
        drawn = {absent.choose(number, rng) for _ in range(15 * len(qualify) + 1)}
        assert drawn == (qualify or {None}), number
    return not all(expected)


def test_exactly_the_sentences_of_absent_categories_and_other_texts_are_chosen(shapes):
    assert check_all_choices(random_rows())
    check_all_choices(shapes.select(range(24)))


def test_a_rare_sentence_is_found_if_nearly_all_sentences_have_a_category_of_the_image():
    rows = make_rows(*((image, 1, [f"dog {image}"]) for image in range(3000)), (3000, 2, ["same", "cat"]))
    absent = AbsentSentences(rows)
    chosen = {absent.choose(7, np.random.default_rng(seed)) for seed in range(20)}
    assert chosen == {(3000, 0), (3000, 1)}


@pytest.mark.parametrize(
    ("rows", "categories"),
    [
        ([(1, -1, ["a"]), (2, -1, ["b"])], 0),
        ([(1, 5, ["a"]), (2, 5, ["b"])], 1),
        ([(1, 5, ["a"]), (1, 6, ["b"]), (2, 5, ["c"]), (2, 6, ["d"])], 2),
        ([(1, 5, ["a dog"]), (2, 6, ["A  dog"])], 2),
        ([], 0),
    ],
)
def test_rows_of_which_no_image_lacks_a_category_are_refused(rows, categories):
    message = rf"split: category_id: expected several categories, .*got {categories} in {len(rows)} references; add"
    for create in (
        AbsentSentences,
        lambda rows: TrainingSamples(rows, no_target_ratio=0.1),
        lambda rows: EvaluationSamples(rows, no_target_pairs=True),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            create(make_rows(*rows))
        assert "\n" not in str(caught.value)
    TrainingSamples(make_rows(*rows))
    EvaluationSamples(make_rows(*rows))


def read(samples):
    return [samples[index] for index in range(len(samples))]


def visits(samples):
    return [(sample.ref_id, sample.sentence, sample.no_target) for sample in samples]


def test_the_share_of_samples_without_a_target_is_as_configured_and_the_others_do_not_change(shapes):
    plain, samples = TrainingSamples(shapes, 3), TrainingSamples(shapes, 3, no_target_ratio=RATIO)
    columns = shapes.remove_columns("image").to_list()
    row_of = {row["ref_id"]: row for row in columns}
    count, chosen = 0, []
    for epoch in range(6):
        plain.set_epoch(epoch)
        samples.set_epoch(epoch)
        for before, after in zip(read(plain), read(samples), strict=True):
            assert before.ref_id == after.ref_id
            assert before.image.tobytes() == after.image.tobytes()
            if not after.no_target:
                assert before.sentence == after.sentence
                np.testing.assert_array_equal(before.mask, after.mask)
                continue
            count += 1
            assert not after.mask.any()
            assert after.mask.shape == before.mask.shape
            qualify = {columns[row]["sentences"][index] for row, index in possible(columns, row_of[after.ref_id])}
            assert after.sentence in qualify
        chosen.append([sample.ref_id for sample in read(samples) if sample.no_target])
    assert count / (6 * len(shapes)) == pytest.approx(RATIO, abs=0.08)
    assert len({tuple(ids) for ids in chosen}) == 6  # each epoch has other ones


def test_the_sentences_depend_on_seed_epoch_and_row_only(shapes):
    samples = TrainingSamples(shapes, 3, no_target_ratio=RATIO)
    samples.set_epoch(2)
    expected = visits(read(samples))
    other = TrainingSamples(shapes, 3, no_target_ratio=RATIO)
    other.set_epoch(2)
    backwards = visits([other[index] for index in reversed(range(len(other)))])[::-1]
    loader = DataLoader(samples, 4, num_workers=2, collate_fn=visits)
    assert [visit for batch in loader for visit in batch] == expected == backwards
    assert visits(read(TrainingSamples(shapes, 4, no_target_ratio=RATIO))) != expected


def test_the_choice_does_not_change_the_draws_of_the_augmentation(shapes):
    drawn = []

    def augment(sample, rng):
        drawn.append((sample.ref_id, rng.random()))
        return sample

    for ratio in (0.0, 0.9):
        read(TrainingSamples(shapes, 3, augment=augment, no_target_ratio=ratio))
    assert drawn[: len(shapes)] == drawn[len(shapes) :]


def test_an_invalid_row_is_reported_also_if_its_sample_has_no_target(shapes):
    samples = TrainingSamples(shapes, is_visible=lambda mask: False, no_target_ratio=0.99)
    with pytest.raises(ValueError, match="of which none remain"):
        samples[0]


def test_rows_without_a_target_keep_their_sentence(shapes):
    changed = shapes.map(
        lambda row, number: (
            {"no_target": True, "mask": encode_mask(np.zeros((32, 32), np.uint8), 32, 32)} if number % 2 else {}
        ),
        with_indices=True,
        features=shapes.features,
    )
    own = dict(zip(changed["ref_id"], changed["sentences"], strict=True))
    marked = set(changed.select(range(1, len(changed), 2))["ref_id"])
    for sample in read(TrainingSamples(changed, no_target_ratio=0.9)):
        if sample.ref_id in marked:
            assert sample.no_target
            assert sample.sentence in own[sample.ref_id]
    pairs = EvaluationSamples(changed, no_target_pairs=True)
    assert len(pairs) - pairs.first_pair == len(changed) - len(marked)
    assert not {sample.ref_id for sample in read(pairs)[len(changed) :]} & marked


@pytest.mark.parametrize("sentences", ["first", "all"])
def test_evaluation_appends_a_pair_per_sample_and_keeps_the_others(shapes, sentences):
    plain = EvaluationSamples(shapes, sentences)
    samples = EvaluationSamples(shapes, sentences, no_target_pairs=True)
    assert (plain.first_pair, samples.first_pair, len(samples)) == (len(plain), len(plain), 2 * len(plain))
    assert visits(read(plain)) == visits(read(samples))[: len(plain)]
    columns = shapes.remove_columns("image").to_list()
    for regular, pair in zip(read(plain), read(samples)[len(plain) :], strict=True):
        assert (pair.ref_id, pair.no_target, pair.mask.any()) == (regular.ref_id, True, False)
        assert pair.image.tobytes() == regular.image.tobytes()
        row = next(row for row in columns if row["ref_id"] == pair.ref_id)
        assert pair.sentence in {columns[number]["sentences"][index] for number, index in possible(columns, row)}
    again, other = (EvaluationSamples(shapes, sentences, seed=seed, no_target_pairs=True) for seed in (0, 1))
    assert visits(read(again)) == visits(read(samples)) != visits(read(other))


def test_an_image_without_a_possible_sentence_has_no_pair():
    rows = make_rows((1, 5, ["a dog"]), (1, 6, ["a cat"]), (2, 5, ["the dog"]), (3, -1, ["what"]))
    samples = EvaluationSamples(rows, no_target_pairs=True)
    assert (len(samples), samples.first_pair) == (5, 4)
    assert samples.row_index[-1] == 2
    assert samples.sentence_row[-1] == 1


def test_shuffled_sentences_do_not_change_the_pairs(shapes):
    plain, shuffled = (
        EvaluationSamples(shapes, shuffle_expressions=shuffle, no_target_pairs=True) for shuffle in (False, True)
    )
    assert visits(read(plain))[len(shapes) :] == visits(read(shuffled))[len(shapes) :]
    assert visits(read(plain))[: len(shapes)] != visits(read(shuffled))[: len(shapes)]


def test_what_is_computed_in_advance_are_arrays(shapes):
    assert all(isinstance(value, np.ndarray) for value in vars(AbsentSentences(shapes)).values())
