"""Which reference is visited when, with which sentence, and what a batch holds."""

from __future__ import annotations

import numpy as np
import pytest
from torch.utils.data import DataLoader

from detris_peft import DetrisProcessor
from detris_peft.data import Collator, EvaluationSamples, TrainingSamples, batches, decode_mask, load_refer
from detris_peft.data.shapes import write_refshapes
from detris_peft.tokenization_detris import train_tokenizer


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_refshapes(root, train=12, val=1, test=1, image_size=48)
    return load_refer(root, "refshapes", "unc", "train")


def visits(samples):
    return [(sample.ref_id, sample.sentence) for sample in (samples[i] for i in range(len(samples)))]


def test_an_epoch_visits_each_reference_once_with_one_of_its_sentences(rows):
    visited = visits(TrainingSamples(rows, seed=3))
    sentences = dict(zip(rows["ref_id"], rows["sentences"], strict=True))
    assert sorted(ref_id for ref_id, _ in visited) == sorted(rows["ref_id"])
    assert all(sentence in sentences[ref_id] for ref_id, sentence in visited)


def test_order_and_sentences_depend_on_seed_and_epoch_alone(rows):
    first, again, other_seed = TrainingSamples(rows, 3), TrainingSamples(rows, 3), TrainingSamples(rows, 4)
    assert visits(first) == visits(again) != visits(other_seed)
    first.set_epoch(5)
    assert visits(first) != visits(again)
    again.set_epoch(5)
    assert visits(first) == visits(again)


def test_over_epochs_every_sentence_has_its_turn(rows):
    samples, seen = TrainingSamples(rows), set()
    for epoch in range(25):
        samples.set_epoch(epoch)
        seen |= set(visits(samples))
    assert seen == {(ref, s) for ref, ss in zip(rows["ref_id"], rows["sentences"], strict=True) for s in ss}


def test_validation_takes_first_sentences_and_a_test_split_all(rows):
    expected = list(zip(rows["ref_id"], [s[0] for s in rows["sentences"]], strict=True))
    assert visits(EvaluationSamples(rows)) == expected
    assert len(EvaluationSamples(rows, "all")) == sum(map(len, rows["sentences"]))
    with pytest.raises(ValueError, match='use "first" or "all"'):
        EvaluationSamples(rows, "some")


def test_shuffled_sentences_come_from_another_picture(rows):
    plain, shuffled = EvaluationSamples(rows, "all"), EvaluationSamples(rows, "all", shuffle_expressions=True)
    image_of = dict(zip(rows["ref_id"], rows["image_id"], strict=True))
    pictures_of = {}
    for ref_id, sentence in visits(plain):
        pictures_of.setdefault(sentence, set()).add(image_of[ref_id])
    for ref_id, sentence in visits(shuffled):
        assert pictures_of[sentence] - {image_of[ref_id]}
    assert [r for r, _ in visits(shuffled)] == [r for r, _ in visits(plain)]
    assert visits(shuffled) == visits(EvaluationSamples(rows, "all", shuffle_expressions=True))


def test_one_picture_may_have_most_of_the_sentences(rows):
    """Nobody can exchange sentences one for one here; each still gets another picture's."""
    most = rows.select(
        [i for i, image_id in enumerate(rows["image_id"]) if image_id in rows["image_id"][:1]] * 3 + [5]
    )
    assert len(EvaluationSamples(most, "all", shuffle_expressions=True)) == sum(map(len, most["sentences"]))


def test_one_picture_cannot_be_shuffled(rows):
    one = rows.filter(lambda image_id: image_id == rows[0]["image_id"], input_columns="image_id")
    with pytest.raises(ValueError, match="at least two pictures"):
        EvaluationSamples(one, shuffle_expressions=True)


def test_a_batch_holds_the_tensors_and_the_masks_to_score(rows):
    words = [sentence for sentences in rows["sentences"] for sentence in sentences]
    processor = DetrisProcessor(train_tokenizer(words, 160), image_size=56, max_text_length=9)
    samples = EvaluationSamples(rows)
    batch = Collator(processor)([samples[0], samples[1]])
    assert batch["pixel_values"].shape == (2, 3, 56, 56)
    assert batch["input_ids"].shape == (2, 9)
    assert batch["labels"].shape == (2, 56, 56)
    assert batch["ref_ids"] == rows["ref_id"][:2]
    for mask, row in zip(batch["masks"], rows, strict=False):
        np.testing.assert_array_equal(mask, decode_mask(row["mask"]))


def test_a_corrupt_picture_is_named_the_same_with_and_without_workers(rows, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    bad = rows.select([0, 1]).map(lambda row: {"image": {"path": str(broken), "bytes": None}})
    messages = []
    for workers in (0, 1):
        loader = DataLoader(EvaluationSamples(bad), 1, num_workers=workers, collate_fn=lambda samples: {})
        with pytest.raises(ValueError, match=r"broken\.jpg: the picture cannot be decoded") as caught:
            list(batches(loader))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
