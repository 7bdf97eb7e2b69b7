"""A synthetic dataset of RefCOCO's size in the REFER format, and what it takes to load it.

`data_loading.py --refer_references 50000` runs it. Polygons, file names and fields are like COCO's, so that the
annotations have a similar size: 157 MB for 50,000 references. The image files are empty. Linux only.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

WORDS = ["red", "left", "right", "man", "woman", "dog", "the", "on", "in", "front", "of", "big", "small", "chair"]
SPLITS = ["train"] * 42 + ["val"] * 4 + ["testA"] * 2 + ["testB"] * 2  # of every 50 references, as in RefCOCO
# Loads what `detris train` loads, and prints seconds, CPU seconds, peak and private memory in MB.
LOAD = """
import json, sys, time
from pathlib import Path
import psutil
from detris_peft.data import load_refer
start, cpu = time.perf_counter(), time.process_time()
rows = [load_refer(sys.argv[1], "refcoco", "unc", split) for split in ("train", "val")]
memory = psutil.Process().memory_full_info()
# Not ru_maxrss, which counts the process that started this one.
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
seconds = time.perf_counter() - start, time.process_time() - cpu
print(json.dumps([*seconds, peak, memory.uss / 1e6]))
"""


def measure_refer(references: int) -> None:
    """Write a dataset, and print time and memory of processes that load it."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        size = write_refer(root, references)
        print(f"{references:,} references, {size / 1e6:.0f} MB of annotations; training and validation split:")
        print(f"{'':42}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}{'private MB':>12}")
        (root / "file").touch()
        _print("no cache (it cannot be written)", [_start(root, root / "file/cache")])
        _print("first start", [_start(root, root / "cache")])
        _print("later start", [_start(root, root / "cache")])
        _print("later start, slowest/largest of 8 at once", [_start(root, root / "cache") for _ in range(8)])
        _print("first start, slowest/largest of 8 at once", [_start(root, root / "cache8") for _ in range(8)])


def write_refer(root: Path, references: int) -> int:
    """Write `references` references with 0.4 images and 3.94 annotations each, and return the files' size in bytes."""
    rng = np.random.default_rng(0)
    num_images, num_annotations = references * 2 // 5, references * 394 // 100
    images = [_image(number) for number in range(num_images)]
    annotations = [_annotation(rng, number, number % num_images) for number in range(num_annotations)]
    content = [_reference(rng, number, annotations[3 * number % num_annotations]) for number in range(references)]
    (root / "images/train2014").mkdir(parents=True)
    for image in images:
        (root / "images/train2014" / image["file_name"]).touch()
    (root / "refcoco").mkdir()
    files = (root / "refcoco/refs(unc).p", root / "refcoco/instances.json")
    files[0].write_bytes(pickle.dumps(content, 2))
    files[1].write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": []}))
    return sum(file.stat().st_size for file in files)


def _image(number: int) -> dict:
    name = f"COCO_train2014_{number:012d}.jpg"
    urls = {"coco_url": f"http://images.example/{name}", "flickr_url": f"http://farm9.example/8035/{number}_z.jpg"}
    return {"id": number, "file_name": name, "height": 480, "width": 640, "license": 1, **urls}


def _annotation(rng: np.random.Generator, number: int, image_id: int) -> dict:
    angles = np.linspace(0, 2 * np.pi, int(rng.integers(8, 56)), endpoint=False)
    radius = rng.uniform(10, 110) * rng.uniform(0.7, 1, len(angles))
    center = rng.uniform(0.25, 0.75, 2) * [640, 480]
    outline = center + np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
    (left, top), (right, bottom) = outline.min(axis=0).round(2), outline.max(axis=0).round(2)
    return {
        "segmentation": [outline.round(2).ravel().tolist()],
        "area": round(float((right - left) * (bottom - top) * 0.7), 4),
        "iscrowd": 0,
        "image_id": image_id,
        "bbox": [float(left), float(top), float(right - left), float(bottom - top)],
        "category_id": number % 80 + 1,
        "id": number + 1,
    }


def _reference(rng: np.random.Generator, number: int, annotation: dict) -> dict:
    texts = [" ".join(rng.choice(WORDS, 4)) for _ in range(2 + number % 2)]
    sentences = [
        {"tokens": text.split(), "raw": text.upper(), "sent_id": 3 * number + i, "sent": text}
        for i, text in enumerate(texts)
    ]
    return {
        "ref_id": number,
        "ann_id": annotation["id"],
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "file_name": f"COCO_train2014_{annotation['image_id']:012d}_{number}.jpg",
        "split": SPLITS[number % len(SPLITS)],
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


def _start(root: Path, cache: Path) -> subprocess.Popen:
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", LOAD, str(root)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def _print(name: str, processes: list[subprocess.Popen]) -> None:
    """Print the largest of each value over processes that run at the same time."""
    values = np.max([json.loads(process.communicate()[0]) for process in processes], axis=0)
    print(f"{name:42}{values[0]:8.1f}{values[1]:8.1f}{values[2]:9.0f}{values[3]:12.0f}", flush=True)
