"""`evaluate` counts each sample exactly once for any batch size and number of ranks, and skips invalid rows."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from detris_peft import DetrisForReferringSegmentation, DetrisProcessor
from detris_peft.data import Collator, EvaluationSamples, Sample
from detris_peft.data.errors import BadRowError, BadRows, MissingImageError
from detris_peft.evaluation import SampleScores, evaluate
from detris_peft.metrics import METRIC_NAMES, NO_TARGET_METRIC_NAMES, ReferringSegmentationMetrics, pixel_counts
from detris_peft.modeling.losses import segmentation_loss
from detris_peft.tokenization_detris import train_tokenizer
from tests.helpers.reference import reference_config

SENTENCES = ("left one", "the red square", "what is not there")


def _sample(index: int) -> Sample:
    """Return a sample whose size depends on its index; every third has no target."""
    rng = np.random.default_rng(index)
    height, width = rng.integers(40, 80, 2)
    mask = np.zeros((height, width), np.uint8)
    if index % 3 < 2:
        mask[: rng.integers(5, 40), : rng.integers(5, 40)] = 1
    image = Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))
    return Sample(image=image, sentence=SENTENCES[index % 3], mask=mask, ref_id=index)


class Samples(Dataset):
    """Seven samples, of which those with an error in `errors` are invalid."""

    def __init__(self, errors: dict[int, BadRowError] | None = None, numbers=range(7)) -> None:
        self.errors = errors or {}
        self.numbers = list(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        number = self.numbers[index]
        if number in self.errors:
            placeholder = np.zeros((8, 8), np.uint8)
            return Sample(Image.new("RGB", (8, 8)), "unread", placeholder, number, error=self.errors[number])
        return _sample(number)


class Stream(IterableDataset):
    """The same samples as a stream that the workers of a rank share."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for index in range(first, len(self.samples), step):
            yield self.samples[index]


def tiny_model() -> tuple[DetrisForReferringSegmentation, DetrisProcessor]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = reference_config()
    model = DetrisForReferringSegmentation(config).eval()
    return model, DetrisProcessor.from_config(config, train_tokenizer(SENTENCES, 120))


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


def _score_one_by_one(model, processor, numbers) -> dict[str, float]:
    """Score one sample at a time, with the loss that the model returns."""
    metrics, losses = ReferringSegmentationMetrics(), []
    for number in numbers:
        batch = Collator(processor)([_sample(number)])
        with torch.no_grad():
            outputs = model(**{name: batch[name] for name in ("pixel_values", "input_ids", "labels")})
        prediction = processor.post_process_referring_segmentation(outputs, batch["target_sizes"])[0]
        metrics.add(prediction=prediction, reference=_sample(number).mask)
        losses.append(outputs.loss.item())
    return {**metrics.compute(), "loss": sum(losses) / len(losses)}


def test_the_result_is_the_mean_over_samples_for_any_batch_size(tiny):
    expected = _score_one_by_one(*tiny, range(7))
    assert list(expected) == [*METRIC_NAMES, *NO_TARGET_METRIC_NAMES, "loss"]
    assert 0 < expected["oIoU"] < 1
    for batch_size in (1, 2, 3, 7, 32):
        result = evaluate(*tiny, Samples(), batch_size=batch_size, progress=False)
        assert result == pytest.approx(expected, abs=1e-6), batch_size


def test_with_keep_aspect_ratio_the_masks_are_those_of_single_images_for_any_batch_size(monkeypatch):
    """The canvas of an image is its own, as in `detris predict`, and not that of the images in its batch."""
    model, processor = tiny_model()
    processor.keep_aspect_ratio = True
    assert len({processor.canvas_size([_sample(i).mask.shape]) for i in range(7)}) > 1
    expected = _score_one_by_one(model, processor, range(7))
    masks: list[np.ndarray] = []

    def count(prediction, reference):
        masks.append(np.asarray(prediction))
        return pixel_counts(prediction, reference)

    monkeypatch.setattr("detris_peft.evaluation.pixel_counts", count)
    evaluate(model, processor, Samples(), batch_size=1, progress=False)
    single = {mask.tobytes() for mask in masks}
    for batch_size in (2, 5):
        masks.clear()
        for samples in (Samples(), Stream(Samples())):
            result = evaluate(model, processor, samples, batch_size=batch_size, progress=False)
            assert result == pytest.approx(expected, abs=1e-6), batch_size
        assert {mask.tobytes() for mask in masks} == single


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "model"}, TypeError, "model: expected Module, got str"),
        ({"processor": None}, TypeError, "processor: expected DetrisProcessor, got NoneType"),
        ({"samples": [1]}, TypeError, r"samples: expected Dataset, got list; pass EvaluationSamples\(rows\)"),
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer of at least 1, got 0"),
        ({"num_workers": -1}, ValueError, "num_workers: expected an integer of at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_named(tiny, changes, error, message):
    arguments = {"model": tiny[0], "processor": tiny[1], "samples": Samples(), "progress": False, **changes}
    with pytest.raises(error, match=message):
        evaluate(**arguments)


class Killed(Samples):
    """Samples whose worker is killed, as by the kernel if memory runs out."""

    def __getitem__(self, index: int) -> Sample:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_killed_worker_is_reported_with_its_signal_and_what_to_do(tiny):
    message = r"DataLoader worker \(pid \d+\) was killed by the signal 'Killed'; .*memory.*lower --num_workers"
    with pytest.raises(ChildProcessError, match=message) as caught:
        evaluate(*tiny, Killed(), num_workers=1, progress=False)
    assert "\n" not in str(caught.value)


def test_no_target_metrics_are_omitted_if_every_sample_has_a_target(tiny):
    result = evaluate(*tiny, Samples(numbers=(0, 1, 3)), batch_size=2, progress=False)
    assert list(result) == [*METRIC_NAMES, "loss"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_of_samples_gives_the_same_result(tiny, num_workers):
    expected = evaluate(*tiny, Samples(), batch_size=2, progress=False)
    result = evaluate(*tiny, Stream(Samples()), batch_size=2, num_workers=num_workers, progress=False)
    assert result == pytest.approx(expected, abs=1e-6)


ERRORS = {
    1: BadRowError("refs.p: reference 1: the mask is empty", "mask_empty"),
    4: MissingImageError("4.jpg: the image is missing"),
    6: BadRowError("6.jpg: cannot be decoded", "image_damaged"),  # alone in its batch of 2
}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_invalid_rows_are_not_scored_and_are_reported_in_order(tiny, num_workers):
    expected = evaluate(*tiny, Samples(numbers=(0, 2, 3, 5)), batch_size=2, progress=False)
    for samples in (Samples(ERRORS), Stream(Samples(ERRORS))):
        bad_rows = BadRows()
        result = evaluate(*tiny, samples, batch_size=2, num_workers=num_workers, progress=False, bad_rows=bad_rows)
        assert result == pytest.approx(expected, abs=1e-6)
        assert [(type(error), str(error), error.kind) for error in bad_rows] == [
            (type(error), str(error), error.kind) for error in ERRORS.values()
        ]


def test_without_bad_rows_the_first_invalid_row_raises(tiny):
    model, processor = tiny
    model.train()
    with pytest.raises(BadRowError, match="the mask is empty") as caught:
        evaluate(model, processor, Samples(ERRORS), batch_size=2, num_workers=1, progress=False)
    assert caught.value.kind == "mask_empty"
    assert model.neck.training  # its training mode is restored
    model.eval()


def test_rows_that_a_stream_skipped_are_reported(tiny):
    class Skipping(IterableDataset):
        def __iter__(self):
            yield replace(_sample(0), skipped=tuple(ERRORS.values()))
            yield _sample(2)

    bad_rows = BadRows()
    result = evaluate(*tiny, Skipping(), progress=False, bad_rows=bad_rows)
    assert result == pytest.approx(evaluate(*tiny, Samples(numbers=(0, 2)), progress=False), abs=1e-6)
    assert sorted(map(str, bad_rows)) == sorted(map(str, ERRORS.values()))


def test_nothing_to_score_raises(tiny):
    for samples in (Samples(numbers=()), Stream(Samples(numbers=()))):
        with pytest.raises(ValueError, match="the dataset is empty"):
            evaluate(*tiny, samples, progress=False)
    with pytest.raises(ValueError, match="every row is invalid"):
        evaluate(*tiny, Samples(ERRORS, numbers=(1, 4)), progress=False, bad_rows=BadRows())


@pytest.mark.parametrize("sentences", ["first", "all"])
def test_no_target_pairs_are_counted_in_n_acc_only(model, processor, rows, sentences):
    """And T-acc is reported with it. The other metrics and the loss are those without pairs."""
    plain = evaluate(model, processor, EvaluationSamples(rows[1], sentences), batch_size=3, progress=False)
    samples = EvaluationSamples(rows[1], sentences, no_target_pairs=True)
    assert 0 < samples.first_pair < len(samples)
    metrics = ReferringSegmentationMetrics()
    model.eval()
    for sample in (samples[index] for index in range(len(samples))):
        batch = Collator(processor)([sample])
        with torch.no_grad():
            outputs = model(batch["pixel_values"], batch["input_ids"])
        prediction = processor.post_process_referring_segmentation(outputs, batch["target_sizes"])[0]
        metrics.add(prediction=prediction, reference=sample.mask)
    expected = metrics.compute()
    for num_workers in (0, 1):
        scores = evaluate(model, processor, samples, batch_size=3, num_workers=num_workers, progress=False)
        assert list(scores) == [*METRIC_NAMES, "N-acc", "T-acc", "loss"]
        assert {name: scores[name] for name in plain} == pytest.approx(plain, abs=1e-6)
        assert {name: scores[name] for name in ("N-acc", "T-acc")} == {
            name: expected[name] for name in ("N-acc", "T-acc")
        }


def test_pairs_do_not_change_the_metrics_of_samples_without_a_target():
    """The counts of a sample with a target, one without (found), and a pair (not found)."""
    counts = {"intersections": [60, 0, 0], "unions": [120, 0, 90], "predicted": [80, 0, 90]}
    scores = SampleScores(
        np.arange(3), *(np.array(values) for values in counts.values()), losses=np.array([1.0, 3.0, 100.0])
    )
    without = SampleScores(*(values[:2] for values in vars(scores).values())).summary()
    with_pair = scores.summary(first_pair=2)
    assert without["N-acc"] == 1.0
    assert with_pair == {**without, "N-acc": 0.5}
    assert with_pair["loss"] == 2.0


def test_the_loss_without_reduction_is_the_loss_of_each_sample():
    torch.manual_seed(1)
    logits, labels = torch.randn(3, 1, 8, 8), torch.rand(3, 16, 16)
    losses = segmentation_loss(logits, labels, reduction="none")
    separate = torch.stack([segmentation_loss(logits[i : i + 1], labels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(losses, separate)
    torch.testing.assert_close(losses.mean(), segmentation_loss(logits, labels))


def test_two_ranks_count_each_sample_once(tiny, tmp_path):
    """Seven samples on 2 ranks with batch size 2: the last batches are padded with duplicates."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", __name__, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=240, cwd=root)
    good = evaluate(*tiny, Samples(), batch_size=2, progress=False)
    bad = evaluate(*tiny, Samples(numbers=(0, 2, 3, 5)), batch_size=2, progress=False)
    model, wide_processor = tiny_model()
    wide_processor.keep_aspect_ratio = True
    own_canvas = evaluate(model, wide_processor, Samples(), batch_size=1, progress=False)
    for rank in range(2):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        assert results["good"] == pytest.approx(good, abs=1e-6)
        assert results["stream"] == pytest.approx(good, abs=1e-6)
        assert results["own_canvas"] == pytest.approx(own_canvas, abs=1e-6)
        assert results["bad"] == pytest.approx(bad, abs=1e-6)
        assert results["messages"] == [str(error) for error in ERRORS.values()]


def main() -> None:
    """Run the ranks of the test above: forks of one process, so that the libraries are imported once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]), WORLD_SIZE="2")
    children = []
    for rank in ("0", "1"):
        children.append(os.fork())
        if not children[-1]:
            os.environ.update(RANK=rank, LOCAL_RANK=rank)
            run_rank()
            return
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:  # the other rank would wait for it
            for other in children:
                os.kill(other, signal.SIGKILL)
            sys.exit(1)


def run_rank() -> None:
    """Write the results of one rank."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    model, processor = tiny_model()
    model = accelerator.prepare(model)
    wide_processor = tiny_model()[1]
    wide_processor.keep_aspect_ratio = True
    bad_rows = BadRows()
    options = {"accelerator": accelerator, "batch_size": 2, "progress": False}
    results = {
        "good": evaluate(model, processor, Samples(), **options),
        "stream": evaluate(model, processor, Stream(Samples()), num_workers=2, **options),
        "own_canvas": evaluate(model, wide_processor, Samples(), **options),
        "bad": evaluate(model, processor, Samples(ERRORS), bad_rows=bad_rows, **options),
        "messages": [str(error) for error in bad_rows],
    }
    Path(sys.argv[1], f"{accelerator.process_index}.json").write_text(json.dumps(results))
    accelerator.end_training()


if __name__ == "__main__":
    main()
