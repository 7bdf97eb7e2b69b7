"""Speed of one process that loads training samples, compared with a baseline, and its memory use.

    python benchmarks/data_loading.py
    python benchmarks/data_loading.py --height 1536 --width 2048 --images 32      # JPEGs decoded at reduced size
    python benchmarks/data_loading.py --memory_references 40000 --curve memory.png  # memory over an epoch
    python benchmarks/data_loading.py --refer_references 50000                    # a set of RefCOCO's size is loaded

Needs `pip install lmdb simplejpeg`, and matplotlib for the curve. Images, polygons and sentences are synthetic: smooth
colors, filled outlines and noise, so that a 640×480 JPEG has about 125 KB, like those of COCO.

Both pipelines produce the same images and labels, batch by batch, on one thread: in this process ("main process"), and
in a DataLoader worker, which also sends them to this process through shared memory ("worker"). Our batches have 8 bits
per value, and the training process normalizes them on its device. The baseline works like earlier systems: one pickle
per reference in LMDB that contains the JPEG, decoded at full size, one PNG per mask, both warped, normalized in
floating point, tokenized and stacked sample by sample. Rounds of the two pipelines alternate, and the best round of
each counts. CPU time is the time that a core needs, independent of other load.
"""

import argparse
import contextlib
import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
import psutil
import torch
from PIL import Image
from refer_set import measure_refer
from torch.utils.data import DataLoader, Dataset, default_collate

from detris_peft import DetrisProcessor
from detris_peft.data import FEATURES, Collator, TrainingSamples, decode_mask, encode_mask
from detris_peft.defaults import CLIP_MEAN, CLIP_STD
from detris_peft.tokenization_detris import train_tokenizer

SENTENCES = ["the red shape on the left", "big blue thing behind the small one", "second from the right, in the back"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--image_size", type=int, default=448)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--memory_references", type=int, default=0, help="measure memory over an epoch of N references"
    )
    parser.add_argument("--num_workers", type=int, default=2, help="workers of that epoch")
    parser.add_argument("--curve", default="data_loading_memory.png")
    parser.add_argument("--refer_references", type=int, default=0, help="load a generated REFER set of N references")
    arguments = parser.parse_args()
    if arguments.refer_references:
        measure_refer(arguments.refer_references)
        return
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        rows = write_images(Path(name), arguments.images, arguments.height, arguments.width)
        processor = DetrisProcessor(train_tokenizer(SENTENCES, 160), image_size=arguments.image_size)
        if arguments.memory_references:
            measure_memory(repeat_rows(rows, arguments.memory_references), processor, arguments)
        else:
            compare(Path(name), rows, processor, arguments)


def write_images(folder: Path, count: int, height: int, width: int) -> list[dict]:
    """Write `count` JPEGs and return one row per image, with a polygon of 40 vertices as mask."""
    rng = np.random.default_rng(0)
    rows, size = [], 0
    for index in range(count):
        colors = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = cv2.resize(colors, (width, height), interpolation=cv2.INTER_CUBIC)
        outlines = [_outline(rng, height, width) for _ in range(12)]
        for outline in outlines:
            cv2.fillPoly(image, [outline.astype(np.int32)], rng.integers(0, 256, 3).tolist())
        noise = rng.normal(0, 13, (height, width, 3))
        path = folder / f"{index}.jpg"
        Image.fromarray((image + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)
        size += path.stat().st_size
        row = {"image": {"path": str(path), "bytes": None}, "sentences": SENTENCES, "ref_id": index, "ann_id": index}
        row |= {"mask": encode_mask([outlines[-1].ravel().tolist()], height, width), "no_target": False}
        row |= {"ann_ids": [index], "image_id": index, "sent_ids": [3 * index + i for i in range(3)]}
        rows.append(row | {"category_id": 1, "split": "train", "dataset": "synthetic", "file_name": path.name})
    print(f"{count} images of {width}x{height}, {size / count / 1000:.0f} KB each")
    return rows


def _outline(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = height * rng.uniform(0.05, 0.25) * rng.uniform(0.7, 1, 40)
    center = rng.uniform(0.25, 0.75, 2) * [width, height]
    return center + np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


# -- speed ------------------------------------------------------------------------------------------------------------


def compare(folder: Path, rows: list[dict], processor: DetrisProcessor, arguments: argparse.Namespace) -> None:
    ours = training_samples(datasets.Dataset.from_list(rows, features=FEATURES), processor)
    baseline = BaselineSamples(folder, rows, processor)
    collate = Collator(processor, keep_masks=False, as_bytes=True)
    pipelines = {"baseline": (baseline, default_collate), "ours": (ours, collate)}
    columns = (
        f"{'CPU ms/sample':>14}{'samples/s (CPU)':>17}{'samples/s (wall)':>18}{'x baseline (CPU)':>18}{'(wall)':>8}"
    )
    print(f"{'':18}{columns}")
    for place, measure in (("main process", time_in_main_process), ("worker", time_in_worker)):
        best = dict.fromkeys(pipelines, (np.inf, np.inf))
        for _ in range(arguments.rounds):
            for name, (samples, collate) in pipelines.items():
                times = measure(samples, collate, arguments.batch_size)
                best[name] = tuple(map(min, times, best[name]))
        for name, (cpu, wall) in best.items():
            ratios = f"{best['baseline'][0] / cpu:18.2f}{best['baseline'][1] / wall:8.2f}"
            print(f"{place:13}{name:>9}{1000 * cpu:10.2f}{1 / cpu:17.0f}{1 / wall:18.0f}{ratios}", flush=True)
    batch = pipelines["ours"][1]([ours[index] for index in range(arguments.batch_size)])
    times = []
    for _ in range(2 * arguments.rounds):
        start = time.process_time()
        processor.normalize_bytes(batch)
        times.append(time.process_time() - start)
    print(f"normalizing our batches on the CPU takes {1000 * min(times) / arguments.batch_size:.2f} ms/sample more")


def training_samples(rows: datasets.Dataset, processor: DetrisProcessor) -> TrainingSamples:
    return TrainingSamples(rows, image_size=processor.image_size, is_visible=processor.is_visible, as_arrays=True)


def time_in_main_process(samples: Any, collate: Callable, batch_size: int) -> tuple[float, ...]:
    """Return CPU and wall seconds per sample when batches are built in this process."""
    timestamped, stamps = TimestampedCollate(collate), []
    for start in range(0, len(samples) - batch_size + 1, batch_size):
        stamps.append(timestamped([samples[i] for i in range(start, start + batch_size)])[1])
    return _per_sample(stamps, batch_size)


def time_in_worker(samples: Any, collate: Callable, batch_size: int) -> tuple[float, ...]:
    """Return CPU and wall seconds per sample of a DataLoader with one worker."""
    loader = DataLoader(samples, batch_size, num_workers=1, collate_fn=TimestampedCollate(collate), drop_last=True)
    return _per_sample([stamp for _, stamp in loader], batch_size)


def _per_sample(stamps: list[tuple[float, float]], batch_size: int) -> tuple[float, ...]:
    return tuple((np.array(stamps[-1]) - stamps[0]) / (len(stamps) - 1) / batch_size)


@dataclass
class TimestampedCollate:
    """Return each batch with the worker's CPU time and the wall time at which it was ready, in seconds."""

    collate: Callable

    def __call__(self, samples: list) -> tuple[Any, tuple[float, float]]:
        cv2.setNumThreads(1)
        return self.collate(samples), (time.process_time(), time.perf_counter())


def _lmdb() -> Any:
    try:
        import lmdb
    except ImportError:
        raise SystemExit("The baseline needs LMDB: pip install lmdb") from None
    return lmdb


class BaselineSamples(Dataset):
    """The baseline: one pickle with the JPEG per reference in LMDB, one PNG per mask, processed sample by sample."""

    def __init__(self, folder: Path, rows: list[dict], processor: DetrisProcessor) -> None:
        self.folder, self.processor, self.length = folder, processor, len(rows)
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
        self.database = None
        lmdb = _lmdb()
        with lmdb.open(str(folder / "lmdb"), map_size=2**32) as database, database.begin(write=True) as transaction:
            for index, row in enumerate(rows):
                cv2.imwrite(str(folder / f"{index}.png"), 255 * decode_mask(row["mask"]))
                image = Path(row["image"]["path"]).read_bytes()
                content = {"image": image, "sentences": row["sentences"], "number": index}
                transaction.put(str(index).encode(), pickle.dumps(content))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if self.database is None:  # opened in the worker, because LMDB must not be used across a fork
            path = str(self.folder / "lmdb")
            self.database = _lmdb().open(path, readonly=True, lock=False, readahead=False, meminit=False)
        with self.database.begin() as transaction:
            reference = pickle.loads(transaction.get(str(index).encode()))
        image = cv2.imdecode(np.frombuffer(reference["image"], np.uint8), cv2.IMREAD_COLOR)
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        mask = cv2.imread(str(self.folder / f"{reference['number']}.png"), cv2.IMREAD_GRAYSCALE)
        side = self.processor.image_size
        matrix = self.processor.image_processor.letterbox_matrix(image.shape[:2], (side, side))
        border = [255 * channel for channel in CLIP_MEAN]
        image = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_CUBIC, borderValue=border)
        mask = cv2.warpAffine(mask, matrix, (side, side), flags=cv2.INTER_LINEAR, borderValue=0)
        pixel_values = torch.from_numpy(image.transpose(2, 0, 1)).float().div_(255).sub_(self.mean).div_(self.std)
        sentence = reference["sentences"][np.random.randint(len(reference["sentences"]))]
        ids = self.processor(text=sentence)["input_ids"][0]
        return {"pixel_values": pixel_values, "labels": torch.from_numpy(mask / 255.0).float(), "input_ids": ids}


# -- memory -----------------------------------------------------------------------------------------------------------


def repeat_rows(rows: list[dict], references: int) -> datasets.Dataset:
    """Return a dataset of `references` rows that share the same few image files."""
    return datasets.Dataset.from_list(
        [rows[i % len(rows)] | {"ref_id": i, "sent_ids": [3 * i, 3 * i + 1, 3 * i + 2]} for i in range(references)],
        features=FEATURES,
    )


def measure_memory(rows: datasets.Dataset, processor: DetrisProcessor, arguments: argparse.Namespace) -> None:
    """Measure each worker's private memory (USS, pages that no other process shares) during an epoch."""
    loader = DataLoader(
        training_samples(rows, processor),
        arguments.batch_size,
        num_workers=arguments.num_workers,
        collate_fn=Collator(processor, keep_masks=False, as_bytes=True),
    )
    points, start = [], time.perf_counter()
    for step, _ in enumerate(loader):
        workers = sorted(child.pid for child in multiprocessing.active_children())
        if step % 25 == 0 and len(workers) == arguments.num_workers:  # workers exit at the end
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                points.append((step * arguments.batch_size, [private_mib(pid) for pid in workers]))
    duration = time.perf_counter() - start
    rate = f"{len(rows) / duration:.0f} samples/s with {arguments.num_workers} workers"
    print(f"{len(rows)} references in {duration:.0f} s, {rate}")
    seen, memory = np.array([n for n, _ in points]), np.array([values for _, values in points])
    for tenth in np.array_split(np.arange(len(seen)), min(len(seen), 10)):
        medians = np.median(memory[tenth], axis=0)
        print(
            f"{seen[tenth[0]]:7} ...: " + "  ".join(f"{value:7.1f}" for value in medians) + " MiB, median per worker"
        )
    plot_memory(seen, memory, arguments.curve)


def private_mib(pid: int) -> float:
    """Return the private memory (USS) of a process in MiB."""
    return psutil.Process(pid).memory_full_info().uss / 2**20


def plot_memory(seen: np.ndarray, memory: np.ndarray, file: str) -> None:
    """Plot the memory of each worker against the number of references seen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot(seen, memory, linewidth=1, label=[f"worker {i}" for i in range(memory.shape[1])])
    axes.set(xlabel="references", ylabel="private memory (USS), MiB", ylim=(0, None))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    print(f"curve: {file}")


if __name__ == "__main__":
    main()
