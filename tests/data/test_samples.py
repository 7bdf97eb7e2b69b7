"""Which reference is visited when, with which sentence, and what a batch holds."""

from __future__ import annotations

from dataclasses import replace

import datasets
import numpy as np
import pytest
from torch.utils.data import DataLoader
from transformers import CLIPTextModelWithProjection, Dinov2WithRegistersModel

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor, presets
from detris_peft.data import (
    FEATURES,
    BadRowError,
    BadRows,
    Collator,
    EvaluationSamples,
    MissingImageError,
    StreamedSamples,
    TrainingSamples,
    batches,
    decode_mask,
    encode_mask,
    load_mapped,
    load_refer,
)
from detris_peft.data.refshapes import write_refshapes
from detris_peft.evaluation import evaluate
from detris_peft.tokenization_detris import train_tokenizer
from detris_peft.training.batching import GlobalBatches


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_refshapes(root, train=12, val=1, test=1, image_size=48)
    return load_refer(root, "refshapes", "unc", "train")


@pytest.fixture(scope="module")
def processor(rows):
    words = [sentence for sentences in rows["sentences"] for sentence in sentences]
    return DetrisProcessor(train_tokenizer(words, 160), image_size=56, max_text_length=9)


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


def test_shuffled_sentences_come_from_another_image(rows):
    plain, shuffled = EvaluationSamples(rows, "all"), EvaluationSamples(rows, "all", shuffle_expressions=True)
    image_of = dict(zip(rows["ref_id"], rows["image_id"], strict=True))
    images_of = {}
    for ref_id, sentence in visits(plain):
        images_of.setdefault(sentence, set()).add(image_of[ref_id])
    for ref_id, sentence in visits(shuffled):
        assert images_of[sentence] - {image_of[ref_id]}
    assert [r for r, _ in visits(shuffled)] == [r for r, _ in visits(plain)]
    assert visits(shuffled) == visits(EvaluationSamples(rows, "all", shuffle_expressions=True))


def test_one_image_may_have_most_of_the_sentences(rows):
    """Nobody can exchange sentences one for one here; each still gets another image's."""
    most = rows.select(
        [i for i, image_id in enumerate(rows["image_id"]) if image_id in rows["image_id"][:1]] * 3 + [5]
    )
    assert len(EvaluationSamples(most, "all", shuffle_expressions=True)) == sum(map(len, most["sentences"]))


def test_one_image_cannot_be_shuffled(rows):
    one = rows.filter(lambda image_id: image_id == rows[0]["image_id"], input_columns="image_id")
    with pytest.raises(ValueError, match="at least two images"):
        EvaluationSamples(one, shuffle_expressions=True)


def test_a_batch_holds_the_tensors_and_the_masks_to_score(rows, processor):
    samples = EvaluationSamples(rows)
    batch = Collator(processor)([samples[0], samples[1]])
    assert batch["pixel_values"].shape == (2, 3, 56, 56)
    assert batch["input_ids"].shape == (2, 9)
    assert batch["labels"].shape == (2, 56, 56)
    assert batch["ref_ids"] == rows["ref_id"][:2]
    for mask, row in zip(batch["masks"], rows, strict=False):
        np.testing.assert_array_equal(mask, decode_mask(row["mask"]))


def test_a_corrupt_image_is_named_the_same_with_and_without_workers(rows, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    bad = rows.select([0, 1]).map(lambda row: {"image": {"path": str(broken), "bytes": None}})
    messages = []
    for workers in (0, 1):
        loader = DataLoader(EvaluationSamples(bad), 1, num_workers=workers, collate_fn=lambda samples: {})
        with pytest.raises(ValueError, match=r"broken\.jpg: the image cannot be decoded") as caught:
            list(batches(loader))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]


# -- one epoch, whoever reads it --------------------


def told(samples, batch_sampler=None, workers=0, **options):
    """What a loader's batches hold, in their order: references with their sentences, and bad rows."""
    loader = DataLoader(
        samples, batch_sampler=batch_sampler, num_workers=workers, collate_fn=Collator(plainly), **options
    )
    got, bad = [], []
    for batch in batches(loader):
        got += zip(batch["ref_ids"], batch["sentences"], strict=True)
        bad += batch["bad_rows"]
    return got, bad


def plainly(images, text, masks, **_):
    """In the place of a processor."""
    assert len(images) == len(text) == len(masks)
    return {}


def test_workers_processes_and_a_later_start_visit_what_one_process_does(rows):
    samples = TrainingSamples(rows, 3)
    samples.set_epoch(2)
    whole = visits(samples)
    assert told(samples, GlobalBatches(len(rows), 5), workers=2)[0] == whole

    parts = [
        [samples[i] for i in batch]
        for shares in zip(*(GlobalBatches(len(rows), 3, 2, index) for index in (0, 1)), strict=True)
        for batch in shares
    ]
    assert [(s.ref_id, s.sentence) for part in parts for s in part] == whole

    later = GlobalBatches(len(rows), 5)
    later.begin(None, 3)
    again = TrainingSamples(rows, 3)
    again.set_epoch(2)
    assert told(again, later, workers=2)[0] == whole[15:]


def test_samples_hold_no_list_of_a_data_sets_length(rows):
    """Each process that reads would come to own a copy of it, item by item."""
    for samples in (TrainingSamples(rows), EvaluationSamples(rows, "all", shuffle_expressions=True)):
        for name, value in vars(samples).items():
            assert not isinstance(value, (list, tuple, dict, set)), name


def without_images(rows, numbers, tmp_path):
    """The rows, of which some have no image: rows of kind image_missing."""
    gone = set(numbers)
    return rows.cast_column("image", datasets.Image(decode=False)).map(
        lambda row, i: {"image": {"path": str(tmp_path / f"gone {i}.jpg"), "bytes": None}} if i in gone else {},
        with_indices=True,
        features=FEATURES,
    )


def test_a_bad_rows_place_is_taken_by_the_next_good_one_and_told_once(rows, tmp_path):
    samples = TrainingSamples(rows, 3)
    places = (4, 7, 8, len(rows) - 1)  # one alone, two in a row, and the last, which the first follows
    bad = without_images(rows, samples.order[list(places)].tolist(), tmp_path)
    whole = visits(samples)
    expected = list(whole)
    for place, by in zip(places, (5, 9, 9, 0), strict=True):
        expected[place] = whole[by]

    for workers in (0, 2):
        got, told_of = told(TrainingSamples(bad, 3, skip_bad_rows=True), GlobalBatches(len(rows), 5), workers=workers)
        assert got == expected
        assert [kind for kind, _ in told_of] == ["image_missing"] * 4
        names = [message.split(": ")[0] for _, message in told_of]
        assert names == [str(tmp_path / f"gone {samples.order[place]}.jpg") for place in places]


def test_without_skipping_the_first_bad_row_is_raised_with_its_kind(rows, tmp_path):
    gone = without_images(rows, range(len(rows)), tmp_path)
    empty = rows.map(lambda row: {"mask": encode_mask(np.zeros((48, 48)), 48, 48)}, features=FEATURES)
    for bad, error, kind in (
        (gone, MissingImageError, "image_missing"),
        (empty, BadRowError, "mask_empty"),
    ):
        messages = set()
        for samples, workers in ((TrainingSamples(bad), 0), (TrainingSamples(bad), 1), (EvaluationSamples(bad), 0)):
            with pytest.raises(error) as caught:
                told(samples, workers=workers, batch_sampler=[[0]])
            assert (type(caught.value), caught.value.kind) == (error, kind)
            messages.add((type(samples), str(caught.value)))
            assert "\n" not in str(caught.value)
        assert len(messages) == 2  # the same with and without a worker
        with pytest.raises(ValueError, match=rf"Every one of the {len(bad)} rows is bad, the first for: "):
            told(TrainingSamples(bad, skip_bad_rows=True), batch_sampler=[[0]])


def test_any_error_of_a_worker_is_said_in_one_line(rows):
    def fail(sample, rng):
        raise ValueError("a line: and\nanother")

    with pytest.raises(ValueError, match=r"^a line: and another$"):
        told(TrainingSamples(rows, augment=fail), workers=1, batch_sampler=[[0]])


def test_a_mask_of_which_nothing_is_left_is_a_bad_row(rows):
    def is_visible(mask):
        return mask.sum() != area

    area = int(decode_mask(rows[3]["mask"]).sum())
    number = rows["ref_id"][3]
    samples = TrainingSamples(rows, is_visible=is_visible, skip_bad_rows=True)
    got, told_of = told(samples, GlobalBatches(len(rows), 5))
    assert number not in [ref_id for ref_id, _ in got]
    assert any(
        kind == "mask_empty" and f"{rows[3]['file_name']}: reference {number}: of the mask's {area} pixels" in message
        for kind, message in told_of
    )
    place = samples.order.tolist().index(3)
    with pytest.raises(BadRowError, match="none is left at the model's image_size"):
        TrainingSamples(rows, is_visible=is_visible)[place]
    # A row without target has nothing to lose; and an augmentation that leaves nothing is not done.
    none = rows.map(lambda row: {"no_target": True}, features=FEATURES)
    assert visits(TrainingSamples(none, is_visible=lambda mask: False)) == visits(TrainingSamples(none))

    def empty(sample, rng):
        return replace(sample, mask=np.zeros_like(sample.mask), sentence="changed")

    kept = TrainingSamples(rows, is_visible=lambda mask: bool(mask.any()), augment=empty)
    assert visits(kept) == visits(TrainingSamples(rows))


def test_an_evaluation_marks_bad_rows_which_are_scored_by_nobody_and_listed_once(rows, tmp_path):
    bad = without_images(rows, [0, 3], tmp_path)
    samples = EvaluationSamples(bad, "all", skip_bad_rows=True)
    marked = [i for i in range(len(samples)) if samples[i].bad is not None]
    assert {samples[i].ref_id for i in marked} == {rows["ref_id"][0], rows["ref_id"][3]}
    assert len(marked) == len(rows["sentences"][0]) + len(rows["sentences"][3])

    config = presets.random_backbones(presets.get("tiny"), tmp_path / "backbones")
    config.image_size = 48
    model = DetrisForReferringSegmentation.from_backbones(
        Dinov2WithRegistersModel.from_pretrained(config.vision_name_or_path),
        CLIPTextModelWithProjection.from_pretrained(config.text_name_or_path),
        config,
    )
    processor = DetrisProcessor.from_config(config, train_tokenizer(["the red circle on the left"] * 9, 160))
    good = bad.select([i for i in range(len(bad)) if i not in (0, 3)])
    expected = evaluate(model, processor, EvaluationSamples(good, "all"), progress=False)
    collected = BadRows()
    scores = evaluate(model, processor, samples, batch_size=5, bad_rows=collected, progress=False)
    assert scores == pytest.approx(expected, abs=1e-6)
    assert [str(error).split(": ")[0] for error in collected] == [str(tmp_path / f"gone {i}.jpg") for i in (0, 3)]
    assert {type(error) for error in collected} == {MissingImageError}


# -- streams --------------------


@pytest.fixture(scope="module")
def stream(rows, tmp_path_factory):
    """The rows as parquet files with images within, and how to stream them."""
    folder = tmp_path_factory.mktemp("stream")
    for part in range(3):
        rows.shard(3, part).to_parquet(folder / f"train-{part:05d}-of-00003.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 s at the end of each reading
        yield lambda **options: load_mapped(str(folder), "train", streaming=True, **options)


def test_a_stream_gives_every_row_once_an_epoch_in_an_order_of_its_own(rows, stream):
    sentences = dict(zip(rows["ref_id"], rows["sentences"], strict=True))
    samples, again = StreamedSamples(stream(), 3), StreamedSamples(stream(), 3)
    epochs = []
    for epoch in (0, 1):
        samples.set_epoch(epoch)
        epochs.append(told(samples, batch_size=4)[0])
    again.set_epoch(1)  # entered there
    assert told(again, batch_size=4)[0] == epochs[1]
    assert told(StreamedSamples(stream(), 4), batch_size=4)[0] != epochs[0]
    for got in epochs:
        assert sorted(ref_id for ref_id, _ in got) == sorted(rows["ref_id"])
        assert all(sentence in sentences[ref_id] for ref_id, sentence in got)
    assert [ref_id for ref_id, _ in epochs[0]] != [ref_id for ref_id, _ in epochs[1]]
    assert dict(epochs[0]) != dict(epochs[1])


def test_a_streams_bad_rows_are_raised_or_left_out_and_each_told_of(rows, tmp_path):
    numbers = [0, 5, len(rows) - 1]
    bad = without_images(rows, numbers, tmp_path)
    ids = [rows["ref_id"][number] for number in numbers]
    for buffer_size in (1, 100):
        samples = StreamedSamples(bad.to_iterable_dataset(), buffer_size=buffer_size, skip_bad_rows=True)
        got, told_of = told(samples, batch_size=4)
        assert sorted(ref_id for ref_id, _ in got) == sorted(set(rows["ref_id"]) - set(ids))
        names = [message.split(": ")[0] for _, message in told_of]
        assert sorted(names) == sorted(str(tmp_path / f"gone {number}.jpg") for number in numbers)
    with pytest.raises(MissingImageError, match=r"gone \d+\.jpg: the image is missing"):
        told(StreamedSamples(bad.to_iterable_dataset()), batch_size=4)
    nothing = without_images(rows, range(len(rows)), tmp_path).to_iterable_dataset()
    with pytest.raises(ValueError, match=rf"Every one of the {len(rows)} rows is bad, the first for: .*gone"):
        told(StreamedSamples(nothing, skip_bad_rows=True), batch_size=4)


def test_workers_share_a_stream_and_draw_the_same_sentences(rows, stream):
    alone = told(StreamedSamples(stream(), 3), batch_size=4)[0]
    shared = told(StreamedSamples(stream(), 3), batch_size=4, workers=2)[0]
    assert sorted(shared) == sorted(alone)
    assert shared == told(StreamedSamples(stream(), 3), batch_size=4, workers=2)[0]
