"""How fast one process reads training samples, against the way papers' scripts do it, and how its memory behaves.

    python benchmarks/data_loading.py                        # samples/s at 448 pixels, one core
    python benchmarks/data_loading.py --photographs          # the same on pictures of 4000x3000 pixels
    python benchmarks/data_loading.py --augmentation         # what RandomAugmentation adds
    python benchmarks/data_loading.py --memory memory.png    # a worker's memory over an epoch of 40,000 references

Needs `pip install lmdb psutil matplotlib`, which the package itself does not: lmdb for the comparison, the others for
`--memory`.

The data are written first: a REFER set of JPEGs (640x480, about 130 KB each) and polygons, three sentences to a
reference. Ours is the path of `detris train`: `load_refer`, `TrainingSamples`, `Collator` and `DetrisProcessor`. The plain
way is what published scripts do: an LMDB of pickles with the JPEG and the sentences, the mask a PNG beside it; the JPEG
is decoded in full by OpenCV, picture and mask are warped, the picture is normalised in PyTorch and the sentence
tokenized one by one. Both give the same tensors, which is checked. The runs alternate; each figure is the best of
`--repeats`. Processor time stands beside wall time: where they differ, other processes were using the core.
"""

import argparse
import json
import math
import pickle
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from detris_peft import DetrisProcessor
from detris_peft.data import Collator, EvaluationSamples, TrainingSamples, decode_mask, load_refer
from detris_peft.data.augmentation import RandomAugmentation
from detris_peft.tokenization_detris import train_tokenizer

WORDS = "the a left right red blue man woman dog cup chair of on in front behind next to tall small table".split()
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image_size", type=int, default=448)
    parser.add_argument("--samples", type=int, default=512, help="samples in one run")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--photographs", action="store_true", help="4000x3000 pixels; takes 24 pictures")
    parser.add_argument("--augmentation", action="store_true", help="ours with and without it, no plain way")
    parser.add_argument("--memory", metavar="FILE.png", help="measure memory instead, and draw its curve")
    parser.add_argument("--references", type=int, default=40_000, help="of --memory")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    size, count = ((4000, 3000), 24) if arguments.photographs else ((640, 480), arguments.pictures)
    references = arguments.references if arguments.memory else 2 * count
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        mean_size = write_refer(root, size, count, references)
        rows = load_refer(root, "generated", "unc", "train")
        tokenizer = train_tokenizer(WORDS, 200)
        processor = DetrisProcessor(tokenizer, image_size=arguments.image_size)
        print(
            f"{processor_name()}, one core, torch {torch.__version__}; {size[0]}x{size[1]} JPEGs of "
            f"{mean_size / 1e3:.0f} KB, image_size {arguments.image_size}"
        )
        if arguments.memory:
            measure_memory(rows, processor, Path(arguments.memory))
        elif arguments.augmentation:
            measure_augmentation(rows, processor, arguments)
        else:
            measure_speed(rows, processor, root, arguments)


# --- Speed -----------------------------------------------------------------------------------------------------------


def measure_speed(rows, processor: DetrisProcessor, root: Path, arguments) -> None:
    ours, plain = our_samples(rows, processor), PlainSamples(write_lmdb(rows, root), processor)
    collator = Collator(processor)
    index = {row["ref_id"]: number for number, row in enumerate(rows.remove_columns("image"))}

    def our_batches(samples) -> Iterator:
        return (collator([samples[place] for place in places]) for places in chunks(len(samples)))

    def plain_batches() -> Iterator:
        return (default_collate([plain[place] for place in places]) for places in chunks(len(plain)))

    # The same rows through both: pictures may differ by a level, as two releases of libjpeg-turbo do.
    batch = next(our_batches(ours))
    expected = default_collate([plain[index[ref_id]] for ref_id in batch["ref_ids"]])
    difference = (batch["pixel_values"] - expected[0]).abs().max() * 255 * max(processor.image_std)
    assert torch.equal(batch["labels"], expected[2])
    print(f"largest difference between the two ways' pictures: {difference:.2f} of 255 levels")

    results = best(
        {"ours": lambda: our_batches(ours), "plain": plain_batches},
        arguments.samples,
        arguments.repeats,
    )
    report(results)
    wall, cpu = (results["ours"][i] / results["plain"][i] for i in (0, 1))
    print(f"ours / plain: {wall:.2f} by wall time, {cpu:.2f} by processor time")


def measure_augmentation(rows, processor: DetrisProcessor, arguments) -> None:
    collator = Collator(processor)
    variants = {
        "without": our_samples(rows, processor),
        "with": our_samples(rows, processor, augment=RandomAugmentation()),
    }

    def run(samples) -> Callable[[], Iterator]:
        return lambda: (collator([samples[place] for place in places]) for places in chunks(len(samples)))

    results = best({name: run(samples) for name, samples in variants.items()}, arguments.samples, arguments.repeats)
    report(results)
    added = 1000 / results["with"][1] - 1000 / results["without"][1]
    print(f"the augmentation adds {added:.1f} ms of processor time to a sample")


def our_samples(rows, processor: DetrisProcessor, **options) -> TrainingSamples:
    """As the training loop makes them."""
    return TrainingSamples(rows, is_visible=processor.is_visible, **options)


def best(ways: dict[str, Callable[[], Iterator]], samples: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Samples per second of wall time and of processor time, the best of the repeats, the ways taking turns."""
    rates = {name: [] for name in ways}
    for name, way in ways.items():
        next(way())
    for _ in range(repeats):
        for name, way in ways.items():
            wall, cpu, done = time.perf_counter(), time.process_time(), 0
            while done < samples:
                for _ in way():
                    done += BATCH
                    if done >= samples:
                        break
            rates[name].append((done / (time.perf_counter() - wall), done / (time.process_time() - cpu)))
    return {name: (max(r[0] for r in rate), max(r[1] for r in rate)) for name, rate in rates.items()}


def report(results: dict[str, tuple[float, float]]) -> None:
    print(f"{'':10} {'samples/s':>10} {'by processor time':>18} {'ms':>7}")
    for name, (wall, cpu) in results.items():
        print(f"{name:10} {wall:10.0f} {cpu:18.0f} {1000 / cpu:7.2f}")


def chunks(length: int) -> Iterator[range]:
    return (range(start, min(start + BATCH, length)) for start in range(0, length, BATCH))


class PlainSamples(Dataset):
    """(pixel_values, input_ids, labels) of one reference, as published scripts make them."""

    def __init__(self, folder: Path, processor: DetrisProcessor) -> None:
        self.folder, self.processor, self.side = folder, processor, processor.image_size
        self.database = lmdb_module().open(str(folder / "lmdb"), readonly=True, lock=False, readahead=False)
        self.mean = torch.tensor(processor.image_mean).reshape(3, 1, 1)
        self.std = torch.tensor(processor.image_std).reshape(3, 1, 1)
        with self.database.begin() as transaction:
            self.length = transaction.stat()["entries"]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        with self.database.begin() as transaction:
            reference = pickle.loads(transaction.get(str(index).encode()))
        image = cv2.imdecode(np.frombuffer(reference["image"], np.uint8), cv2.IMREAD_COLOR)
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        mask = cv2.imread(str(self.folder / "masks" / reference["mask"]), cv2.IMREAD_GRAYSCALE)
        matrix, canvas = self._matrix(*image.shape[:2]), (self.side, self.side)
        border = [255 * channel for channel in self.processor.image_mean]
        image = cv2.warpAffine(image, matrix, canvas, flags=cv2.INTER_CUBIC, borderValue=border)
        mask = cv2.warpAffine(mask, matrix, canvas, flags=cv2.INTER_LINEAR, borderValue=0.0) / 255.0
        pixels = torch.from_numpy(image.transpose(2, 0, 1)).float().div_(255.0).sub_(self.mean).div_(self.std)
        ids = self.processor.tokenizer(random.choice(reference["sentences"]))["input_ids"]
        padded = torch.zeros(self.processor.max_text_length, dtype=torch.long)
        padded[: len(ids)] = torch.tensor(ids)
        return pixels, padded, torch.from_numpy(mask).float()

    def _matrix(self, height: int, width: int) -> np.ndarray:
        scale = min(self.side / height, self.side / width)
        left, top = (self.side - width * scale) / 2, (self.side - height * scale) / 2
        source = np.array([[0, 0], [width, 0], [0, height]], np.float32)
        target = [[left, top], [width * scale + left, top], [left, height * scale + top]]
        return cv2.getAffineTransform(source, np.array(target, np.float32))


def write_lmdb(rows, root: Path) -> Path:
    (root / "masks").mkdir()
    with lmdb_module().open(str(root / "lmdb"), map_size=1 << 40) as database, database.begin(write=True) as writing:
        for number, row in enumerate(rows.cast_column("image", type(rows.features["image"])(decode=False))):
            name = f"{row['ref_id']}.png"
            cv2.imwrite(str(root / "masks" / name), decode_mask(row["mask"]) * 255)
            image = Path(row["image"]["path"]).read_bytes()
            reference = {"image": image, "mask": name, "sentences": row["sentences"]}
            writing.put(str(number).encode(), pickle.dumps(reference))
    return root


def lmdb_module():
    try:
        import lmdb
    except ImportError:
        raise SystemExit("The comparison needs lmdb, which is not installed: pip install lmdb") from None
    return lmdb


# --- Memory ----------------------------------------------------------------------------------------------------------


def measure_memory(rows, processor: DetrisProcessor, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    kinds = {"TrainingSamples": our_samples(rows, processor), "EvaluationSamples": EvaluationSamples(rows, "all")}
    print(f"{'':20} {'samples':>8} {'RSS MiB, first':>15} {'last':>7} {'USS MiB, first':>15} {'last':>7} {'rise':>6}")
    for name, samples in kinds.items():
        points = worker_memory(samples, processor)
        seen, resident, own = (np.array(column) for column in zip(*points, strict=True))
        axes.plot(seen, own, label=f"{name}, USS")
        axes.plot(seen, resident, "--", label=f"{name}, RSS")
        # The first readings are of a worker that has yet to fill its caches; the first tenth is the start.
        start = slice(1, max(2, len(own) // 10))
        end = slice(-max(1, len(own) // 10), None)
        first, last = np.median(own[start]), np.median(own[end])
        print(
            f"{name:20} {len(samples):8} {np.median(resident[start]):15.1f} {np.median(resident[end]):7.1f} "
            f"{first:15.1f} {last:7.1f} {last - first:6.1f}",
            flush=True,
        )
    axes.set(xlabel="samples read by the worker", ylabel="MiB", ylim=(0, None))
    axes.legend()
    figure.savefig(file, dpi=120)
    print(f"{len(rows)} references; first and last are medians of the epoch's first and last tenth; curve: {file}")


def worker_memory(samples: Dataset, processor: DetrisProcessor) -> list[tuple[int, float, float]]:
    """(samples read, RSS, USS) of the one worker of a data loader, in MiB, some 200 times during an epoch."""
    import psutil

    loader = DataLoader(samples, BATCH, num_workers=1, collate_fn=Collator(processor))
    batches, points = iter(loader), []
    (worker,) = psutil.Process().children()
    every = max(1, len(loader) // 200)
    for number, _ in enumerate(batches):
        if number % every == 0 and number + loader.prefetch_factor < len(loader):
            memory = worker.memory_full_info()
            points.append((number * BATCH, memory.rss / 2**20, memory.uss / 2**20))
    return points


# --- The data --------------------------------------------------------------------------------------------------------


def write_refer(root: Path, size: tuple[int, int], pictures: int, references: int) -> float:
    """A REFER set in `root`; the pictures' mean file size in bytes."""
    rng = np.random.default_rng(0)
    width, height = size
    (root / "images" / "train2014").mkdir(parents=True)
    images, annotations, refs, total = [], [], [], 0
    for number in range(pictures):
        path = root / "images" / "train2014" / f"{number}.jpg"
        Image.fromarray(photograph(rng, height, width)).save(path, quality=QUALITY)
        total += path.stat().st_size
        images.append({"id": number, "file_name": path.name, "height": height, "width": width})
    for number in range(references):
        image = images[number % pictures]
        annotations.append(
            {"id": number, "image_id": image["id"], "category_id": 1, "segmentation": polygons(rng, height, width)}
        )
        sentences = [
            {"sent": " ".join(rng.choice(WORDS, int(rng.integers(2, 9)))), "sent_id": 3 * number + i} for i in range(3)
        ]
        refs.append(
            {
                "ref_id": number,
                "ann_id": number,
                "category_id": 1,
                "image_id": image["id"],
                "file_name": image["file_name"],
                "split": "train",
                "sentences": sentences,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
            }
        )
    folder = root / "generated"
    folder.mkdir()
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs))
    return total / pictures


QUALITY = 92


def photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3) with what makes a photograph's file large: structure at every scale, and grain."""
    picture = np.full((height, width, 3), 120, np.float32)
    for octave in range(1, int(math.log2(width)) + 1):
        coarse = rng.normal(0, 70 / octave**1.3, (max(2, height * 2**octave // width), 2**octave, 3))
        coarse = 0.7 * coarse.mean(axis=2, keepdims=True) + 0.3 * coarse  # hues vary less than light
        picture += cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):  # edges
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        colour = rng.uniform(20, 235, 3).tolist()
        axes = (rng.uniform(0.03, 0.2, 2) * width).astype(int).tolist()
        overlay = cv2.ellipse(picture.copy(), centre, axes, rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
        picture = 0.4 * picture + 0.6 * overlay
    return picture.clip(0, 255).astype(np.uint8)


def polygons(rng: np.random.Generator, height: int, width: int) -> list[list[float]]:
    """One or two outlines of 20 to 60 corners, as COCO's are."""
    outlines = []
    for _ in range(int(rng.integers(1, 3))):
        corners = int(rng.integers(20, 61))
        angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        radius = rng.uniform(0.05, 0.25) * height * rng.uniform(0.7, 1.3, corners)
        x = (rng.uniform(0.2, 0.8) * width + radius * np.cos(angle)).clip(0, width)
        y = (rng.uniform(0.2, 0.8) * height + radius * np.sin(angle)).clip(0, height)
        outlines.append(np.stack([x, y], 1).round(2).ravel().tolist())
    return outlines


def processor_name() -> str:
    if platform.system() == "Linux":
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
