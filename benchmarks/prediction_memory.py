"""Memory and open files of one process over many predictions.

    python benchmarks/prediction_memory.py                # 10,000 predictions with a tiny random model, on the CPU
    python benchmarks/prediction_memory.py --checkpoint runs/b/best --device cuda --rows 2000

The job is that of `detris predict`: 50 images from 64×48 to 400×300 pixels, JPEG and PNG, with several sentences
each, are loaded in a thread, predicted, and written as JSON Lines with masks and overlays. Every 500 rows, one line
shows the resident memory of the process (and the allocated memory of the GPU), its open files and its threads.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from detris_peft import DetrisForReferringSegmentation, DetrisPredictor, DetrisProcessor, presets
from detris_peft.modeling.encoders import build_backbone
from detris_peft.prediction.job_files import JobFiles
from detris_peft.prediction.jobs import job_fingerprint, run_job
from detris_peft.prediction.pairs import cross_pairs
from detris_peft.prediction.row_predictor import RowPredictor
from detris_peft.tokenization_detris import train_tokenizer

TEXTS = ["the red circle", "the small square on the left", "the blue one", "the largest green triangle"]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--checkpoint", help="default: a tiny model with random weights")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.checkpoint:
        predictor = DetrisPredictor.from_pretrained(arguments.checkpoint, device=arguments.device)
    else:
        model, processor = tiny_model()
        predictor = DetrisPredictor(model, processor, device=arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder))
        pairs = cross_pairs(images * -(-arguments.rows // (len(images) * len(TEXTS))), TEXTS)[: arguments.rows]
        files = JobFiles(Path(folder) / "out")
        row_predictor = RowPredictor(predictor, 0.5, ["overlay", "mask"], files.output, len(pairs))
        process, started, done, shown = psutil.Process(), time.monotonic(), 0, 0

        def measured(batches):
            nonlocal done, shown
            for results in row_predictor.stream(batches):
                yield results
                done += len(results)
                if done - shown >= arguments.every or shown == 0 or done == len(pairs):
                    shown = done
                    gpu = f" {torch.cuda.memory_allocated() / 2**20:8.0f}" if arguments.device != "cpu" else ""
                    memory, seconds = process.memory_info().rss / 2**20, time.monotonic() - started
                    print(
                        f"{done:6} {memory:8.1f}{gpu} {process.num_fds():5} {process.num_threads():8} {seconds:7.0f}"
                    )

        print(f"{'rows':>6} {'RSS MiB':>8}{' GPU MiB' if arguments.device != 'cpu' else ''} files  threads seconds")
        fingerprint = job_fingerprint(predictor, "", pairs, 0.5, row_predictor.save)
        run_job(measured, pairs, files, fingerprint, batch_size=arguments.batch_size)


def tiny_model() -> tuple[DetrisForReferringSegmentation, DetrisProcessor]:
    """Return the tiny preset with random weights."""
    torch.manual_seed(0)
    config = presets.get("tiny")
    backbones = (build_backbone(config.vision_config), build_backbone(config.text_config))
    model = DetrisForReferringSegmentation.from_backbones(*backbones, config).eval()
    return model, DetrisProcessor.from_config(model.config, train_tokenizer(TEXTS, config.text_config.vocab_size))


def write_images(folder: Path) -> list[str]:
    """Write 50 images of smooth noise, no two of the same size, and return their paths."""
    generator, paths = np.random.default_rng(0), []
    for i in range(50):
        width = 64 + round(i * (400 - 64) / 49)
        noise = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        path = folder / f"{i:02}.{'jpg' if i % 2 else 'png'}"
        noise.resize((width, width * 3 // 4), Image.Resampling.BICUBIC).save(path)
        paths.append(str(path))
    generator.shuffle(paths)
    return paths


if __name__ == "__main__":
    main()
