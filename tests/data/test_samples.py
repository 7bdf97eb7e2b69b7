"""Sample order, sentence choice, batches, invalid rows and streams."""

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
    decode_mask,
    encode_mask,
    iterate_batches,
    load_mapped,
    load_refer,
)
from detris_peft.data.masks import unite_masks
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
    """Return (ref_id, sentence) of each sample."""
    return [(sample.ref_id, sample.sentence) for sample in (samples[i] for i in range(len(samples)))]


def test_an_epoch_visits_each_reference_once_with_one_of_its_sentences(rows):
    visited = visits(TrainingSamples(rows, seed=3))
    sentences = dict(zip(rows["ref_id"], rows["sentences"], strict=True))
    assert sorted(ref_id for ref_id, _ in visited) == sorted(rows["ref_id"])
    assert all(sentence in sentences[ref_id] for ref_id, sentence in visited)


def test_order_and_sentences_depend_on_seed_and_epoch_only(rows):
    first, same_seed, other_seed = TrainingSamples(rows, 3), TrainingSamples(rows, 3), TrainingSamples(rows, 4)
    assert visits(first) == visits(same_seed) != visits(other_seed)
    first.set_epoch(5)
    assert visits(first) != visits(same_seed)
    same_seed.set_epoch(5)
    assert visits(first) == visits(same_seed)


def test_workers_that_stay_alive_get_the_next_epoch(rows, stream):
    for samples in (TrainingSamples(rows, seed=3), StreamedSamples(stream(), seed=3)):
        orders = []
        for persistent in (False, True):
            loader = DataLoader(
                samples,
                1,
                num_workers=1,
                collate_fn=lambda batch: (batch[0].ref_id, batch[0].sentence),
                persistent_workers=persistent,
            )
            for epoch in (1, 2, 3):
                samples.set_epoch(epoch)
                orders.append([*loader])
        assert orders[:3] == orders[3:]
        assert len({tuple(order) for order in orders}) == 3


def test_every_sentence_occurs_over_several_epochs(rows):
    samples, seen = TrainingSamples(rows), set()
    for epoch in range(25):
        samples.set_epoch(epoch)
        seen |= set(visits(samples))
    assert seen == {(ref, s) for ref, ss in zip(rows["ref_id"], rows["sentences"], strict=True) for s in ss}


def test_evaluation_uses_the_first_sentence_or_all(rows):
    expected = list(zip(rows["ref_id"], [s[0] for s in rows["sentences"]], strict=True))
    assert visits(EvaluationSamples(rows)) == expected
    assert len(EvaluationSamples(rows, "all")) == sum(map(len, rows["sentences"]))
    with pytest.raises(ValueError, match=r'expected "first" or "all", got .some.'):
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


def test_sentences_can_be_shuffled_if_most_belong_to_one_image(rows):
    """No permutation exists here, but each sample still gets a sentence of another image."""
    most = rows.select(
        [i for i, image_id in enumerate(rows["image_id"]) if image_id in rows["image_id"][:1]] * 3 + [5]
    )
    assert len(EvaluationSamples(most, "all", shuffle_expressions=True)) == sum(map(len, most["sentences"]))


def test_sentences_of_a_single_image_cannot_be_shuffled(rows):
    one = rows.filter(lambda image_id: image_id == rows[0]["image_id"], input_columns="image_id")
    with pytest.raises(ValueError, match="at least two images"):
        EvaluationSamples(one, shuffle_expressions=True)


def test_a_batch_holds_model_inputs_and_original_masks(rows, processor):
    samples = EvaluationSamples(rows)
    batch = Collator(processor)([samples[0], samples[1]])
    assert batch["pixel_values"].shape == (2, 3, 56, 56)
    assert batch["input_ids"].shape == (2, 9)
    assert batch["labels"].shape == (2, 56, 56)
    assert batch["ref_ids"] == rows["ref_id"][:2]
    for mask, row in zip(batch["masks"], rows, strict=False):
        np.testing.assert_array_equal(mask, decode_mask(row["mask"]))


def test_a_corrupt_image_gives_the_same_message_with_and_without_workers(rows, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    bad = rows.select([0, 1]).map(lambda row: {"image": {"path": str(broken), "bytes": None}})
    messages = []
    for workers in (0, 1):
        loader = DataLoader(EvaluationSamples(bad), 1, num_workers=workers, collate_fn=lambda samples: {})
        with pytest.raises(
            ValueError, match=r"broken\.jpg: expected an image, got a file that cannot be decoded"
        ) as caught:
            list(iterate_batches(loader))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]


# -- epochs are independent of workers and ranks ----


def load(samples, batch_sampler=None, workers=0, **options):
    """Return the (ref_id, sentence) pairs and the bad rows of a loader's batches, in order."""
    loader = DataLoader(
        samples, batch_sampler=batch_sampler, num_workers=workers, collate_fn=Collator(no_processor), **options
    )
    loaded, bad = [], []
    for batch in iterate_batches(loader):
        loaded += zip(batch["ref_ids"], batch["sentences"], strict=True)
        bad += batch["bad_rows"]
    return loaded, bad


def no_processor(images, text, masks, **_):
    """Replace a processor, without model inputs."""
    assert len(images) == len(text) == len(masks)
    return {}


def test_samples_are_the_same_with_workers_with_ranks_and_after_resuming(rows):
    samples = TrainingSamples(rows, 3)
    samples.set_epoch(2)
    expected = visits(samples)
    assert load(samples, GlobalBatches(len(rows), 5, drop_last=False), workers=2)[0] == expected

    parts = [
        [samples[i] for i in batch]
        for shares in zip(*(GlobalBatches(len(rows), 3, 2, index, drop_last=False) for index in (0, 1)), strict=True)
        for batch in shares
    ]
    assert [(s.ref_id, s.sentence) for part in parts for s in part] == expected

    later = GlobalBatches(len(rows), 5, drop_last=False)
    later.start_at(None, 3)
    resumed = TrainingSamples(rows, 3)
    resumed.set_epoch(2)
    assert load(resumed, later, workers=2)[0] == expected[15:]


def test_samples_keep_per_row_data_in_arrays(rows):
    """Each worker would end up with a copy of a Python container, because reading changes reference counts."""
    for samples in (TrainingSamples(rows), EvaluationSamples(rows, "all", shuffle_expressions=True)):
        for name, value in vars(samples).items():
            assert not isinstance(value, (list, tuple, dict, set)), name


def without_images(rows, numbers, tmp_path):
    """Return the rows, with the image files of some missing: rows of kind image_missing."""
    missing = set(numbers)
    return rows.cast_column("image", datasets.Image(decode=False)).map(
        lambda row, i: {"image": {"path": str(tmp_path / f"missing {i}.jpg"), "bytes": None}} if i in missing else {},
        with_indices=True,
        features=FEATURES,
    )


def test_an_invalid_row_is_replaced_by_the_next_valid_one_and_reported_once(rows, tmp_path):
    samples = TrainingSamples(rows, 3)
    positions = (4, 7, 8, len(rows) - 1)  # one, two adjacent ones, and the last, which is followed by the first
    bad = without_images(rows, samples.order[list(positions)].tolist(), tmp_path)
    valid = visits(samples)
    expected = list(valid)
    for position, replacement in zip(positions, (5, 9, 9, 0), strict=True):
        expected[position] = valid[replacement]

    for workers in (0, 2):
        loaded, bad_rows = load(
            TrainingSamples(bad, 3, skip_bad_rows=True), GlobalBatches(len(rows), 5, drop_last=False), workers=workers
        )
        assert loaded == expected
        assert [kind for kind, _ in bad_rows] == ["image_missing"] * 4
        names = [message.split(": ")[0] for _, message in bad_rows]
        assert names == [str(tmp_path / f"missing {samples.order[position]}.jpg") for position in positions]


def test_without_skipping_the_first_invalid_row_raises_with_its_kind(rows, tmp_path):
    missing = without_images(rows, range(len(rows)), tmp_path)
    empty = rows.map(lambda row: {"mask": encode_mask(np.zeros((48, 48)), 48, 48)}, features=FEATURES)
    for bad, error, kind in (
        (missing, MissingImageError, "image_missing"),
        (empty, BadRowError, "mask_empty"),
    ):
        messages = set()
        for samples, workers in ((TrainingSamples(bad), 0), (TrainingSamples(bad), 1), (EvaluationSamples(bad), 0)):
            with pytest.raises(error) as caught:
                load(samples, workers=workers, batch_sampler=[[0]])
            assert (type(caught.value), caught.value.kind) == (error, kind)
            messages.add((type(samples), str(caught.value)))
            assert "\n" not in str(caught.value)
        assert len(messages) == 2  # the same with and without a worker
        with pytest.raises(ValueError, match=rf"got {len(bad)} invalid rows; fix the first: "):
            load(TrainingSamples(bad, skip_bad_rows=True), batch_sampler=[[0]])


def test_any_worker_error_is_raised_as_one_line(rows):
    def fail(sample, rng):
        raise ValueError("first line: and\nsecond")

    with pytest.raises(ValueError, match=r"^first line: and second$"):
        load(TrainingSamples(rows, augment=fail), workers=1, batch_sampler=[[0]])


def test_a_mask_that_is_not_visible_is_an_invalid_row(rows):
    def is_visible(mask):
        return mask.sum() != area

    area = int(decode_mask(rows[3]["mask"]).sum())
    number = rows["ref_id"][3]
    samples = TrainingSamples(rows, is_visible=is_visible, skip_bad_rows=True)
    loaded, bad_rows = load(samples, GlobalBatches(len(rows), 5))
    assert number not in [ref_id for ref_id, _ in loaded]
    assert any(
        kind == "mask_empty"
        and message.startswith(f"{rows[3]['file_name']}: reference {number}: ")
        and f"got {area} pixels" in message
        for kind, message in bad_rows
    )
    position = samples.order.tolist().index(3)
    with pytest.raises(BadRowError, match="of which none remain"):
        TrainingSamples(rows, is_visible=is_visible)[position]
    # Rows without a target are always valid, and an augmentation that removes the mask is discarded.
    no_target = rows.map(
        lambda row: {"no_target": True, "mask": unite_masks([], *row["mask"]["size"])}, features=FEATURES
    )
    assert visits(TrainingSamples(no_target, is_visible=lambda mask: False)) == visits(TrainingSamples(no_target))

    def empty(sample, rng):
        return replace(sample, mask=np.zeros_like(sample.mask), sentence="changed")

    kept = TrainingSamples(rows, is_visible=lambda mask: bool(mask.any()), augment=empty)
    assert visits(kept) == visits(TrainingSamples(rows))


def test_evaluation_marks_invalid_rows_does_not_score_them_and_lists_each_once(rows, tmp_path):
    bad = without_images(rows, [0, 3], tmp_path)
    samples = EvaluationSamples(bad, "all", skip_bad_rows=True)
    marked = [i for i in range(len(samples)) if samples[i].error is not None]
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
    valid = bad.select([i for i in range(len(bad)) if i not in (0, 3)])
    expected = evaluate(model, processor, EvaluationSamples(valid, "all"), progress=False)
    collected = BadRows()
    scores = evaluate(model, processor, samples, batch_size=5, bad_rows=collected, progress=False)
    assert scores == pytest.approx(expected, abs=1e-6)
    assert [str(error).split(": ")[0] for error in collected] == [str(tmp_path / f"missing {i}.jpg") for i in (0, 3)]
    assert {type(error) for error in collected} == {MissingImageError}


# -- streams --------------------


@pytest.fixture(scope="module")
def stream(rows, tmp_path_factory):
    """Write the rows as parquet files with embedded images; return a function that streams them."""
    folder = tmp_path_factory.mktemp("stream")
    for part in range(3):
        rows.shard(3, part).to_parquet(folder / f"train-{part:05d}-of-00003.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # saves 5 s after each pass
        yield lambda **options: load_mapped(str(folder), "train", streaming=True, **options)


def test_a_stream_yields_every_row_once_per_epoch_in_a_new_order(rows, stream):
    sentences = dict(zip(rows["ref_id"], rows["sentences"], strict=True))
    samples, resumed = StreamedSamples(stream(), 3), StreamedSamples(stream(), 3)
    epochs = []
    for epoch in (0, 1):
        samples.set_epoch(epoch)
        epochs.append(load(samples, batch_size=4)[0])
    resumed.set_epoch(1)
    assert load(resumed, batch_size=4)[0] == epochs[1]
    assert load(StreamedSamples(stream(), 4), batch_size=4)[0] != epochs[0]
    for loaded in epochs:
        assert sorted(ref_id for ref_id, _ in loaded) == sorted(rows["ref_id"])
        assert all(sentence in sentences[ref_id] for ref_id, sentence in loaded)
    assert [ref_id for ref_id, _ in epochs[0]] != [ref_id for ref_id, _ in epochs[1]]
    assert dict(epochs[0]) != dict(epochs[1])


def test_invalid_rows_of_a_stream_raise_or_are_skipped_and_reported(rows, tmp_path):
    numbers = [0, 5, len(rows) - 1]
    bad = without_images(rows, numbers, tmp_path)
    ids = [rows["ref_id"][number] for number in numbers]
    for buffer_size in (1, 100):
        samples = StreamedSamples(bad.to_iterable_dataset(), buffer_size=buffer_size, skip_bad_rows=True)
        loaded, bad_rows = load(samples, batch_size=4)
        assert sorted(ref_id for ref_id, _ in loaded) == sorted(set(rows["ref_id"]) - set(ids))
        names = [message.split(": ")[0] for _, message in bad_rows]
        assert sorted(names) == sorted(str(tmp_path / f"missing {number}.jpg") for number in numbers)
    with pytest.raises(MissingImageError, match=r"missing \d+\.jpg: the image is missing"):
        load(StreamedSamples(bad.to_iterable_dataset()), batch_size=4)
    all_invalid = without_images(rows, range(len(rows)), tmp_path).to_iterable_dataset()
    with pytest.raises(ValueError, match=rf"got {len(rows)} invalid rows; fix the first: .*missing \d"):
        load(StreamedSamples(all_invalid, skip_bad_rows=True), batch_size=4)


def test_workers_share_a_stream_and_draw_the_same_sentences(rows, stream):
    without_workers = load(StreamedSamples(stream(), 3), batch_size=4)[0]
    shared = load(StreamedSamples(stream(), 3), batch_size=4, workers=2)[0]
    assert sorted(shared) == sorted(without_workers)
    assert shared == load(StreamedSamples(stream(), 3), batch_size=4, workers=2)[0]


@pytest.mark.parametrize("sentences", [["&nbsp;"], ["\u200b"], []])
def test_rows_whose_sentences_are_blank_are_skipped(rows, sentences):
    """The readers refuse such rows; a dataset that was built in another way must not stop a run deep inside."""
    index = int(TrainingSamples(rows, 3).order[0])
    bad = rows.cast_column("image", datasets.Image(decode=False)).map(
        lambda _, i: {"sentences": sentences} if i == index else {}, with_indices=True, features=FEATURES
    )
    for samples in (TrainingSamples(bad, 3), StreamedSamples(bad.to_iterable_dataset(), 3)):
        with pytest.raises(BadRowError, match="sentence"):
            list(samples)
    assert len(TrainingSamples(bad, 3, skip_bad_rows=True)[0].skipped) == 1
    assert (
        sum(len(sample.skipped) for sample in StreamedSamples(bad.to_iterable_dataset(), 3, skip_bad_rows=True)) == 1
    )
    evaluated = EvaluationSamples(bad, skip_bad_rows=True)
    assert len(evaluated) == len(rows)
    assert [i for i in range(len(rows)) if evaluated[i].error] == [index]
