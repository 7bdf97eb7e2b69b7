"""The model card of a checkpoint (README.md): metadata for the Hub, results, and code that loads it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from ..atomic import MANIFEST, atomic_update_dir, recover, sync_tree
from ..images import Source
from ..manifest import file_entry
from ..safe_loading import read_json
from .card_image import CARD_IMAGE_FILE, card_image
from .card_sections import (
    CARD_HEADING,
    FULL_TUNING,
    METHOD,
    backbones_section,
    image_section,
    peft_section,
    results_section,
    training_section,
    usage_section,
)
from .configuration_detris import DetrisConfig
from .hub_benchmarks import EVAL_RESULTS_FILE, eval_results_yaml
from .training_results import TrainingResults, is_hub_name, plain_name

CARD_FILE = "README.md"
# Optional files that belong to the card
CARD_ATTACHMENTS = (CARD_IMAGE_FILE, EVAL_RESULTS_FILE)


def write_model_card(
    folder: str | os.PathLike, results: TrainingResults | None = None, image: Source | None = None
) -> None:
    """Replace the model card of a folder written by `save_pretrained` with one that shows results.

    All files and their entries in the manifest change in one step.

    Args:
        folder: the checkpoint.
        results: scores to show; with benchmarks, `.eval_results/detris_peft.yaml` is written as well.
        image: image of predictions, which is published with the checkpoint: path, bytes or binary file; default: the
            one that an earlier call wrote, if it exists.

    Raises:
        FileNotFoundError: the folder or the image does not exist.
        ValueError: the image is damaged, or the results lack the metric of a benchmark.
    """
    folder = Path(folder)
    recover(folder)
    config = DetrisConfig.from_pretrained(folder)
    files: dict[str, bytes] = {}
    if image is not None:
        files[CARD_IMAGE_FILE] = card_image(image)
    if results is not None and results.benchmarks:
        files[EVAL_RESULTS_FILE] = eval_results_yaml(results.benchmarks, results.scores).encode()
    shows_image = CARD_IMAGE_FILE in files or (folder / CARD_IMAGE_FILE).is_file()
    files[CARD_FILE] = model_card(config, results, has_image=shows_image).encode()
    removed = [] if EVAL_RESULTS_FILE in files else [EVAL_RESULTS_FILE]  # of an earlier card
    with atomic_update_dir(folder, removed) as staging:
        for name, content in files.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(content)
        if (folder / MANIFEST).is_file():
            entries = read_json(folder / MANIFEST)
            if not isinstance(entries, dict):
                raise ValueError(
                    f"{folder / MANIFEST}: expected an object of file names, got {type(entries).__name__}; copy or "
                    "download the checkpoint again."
                )
            for name in removed if shows_image else (*removed, CARD_IMAGE_FILE):
                entries.pop(name, None)
            entries.update({name: file_entry(staging / name) for name in files})
            (staging / MANIFEST).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        sync_tree(staging)


def model_card(
    config: DetrisConfig,
    results: TrainingResults | None = None,
    *,
    license: str = "apache-2.0",
    has_image: bool = False,
) -> str:
    """Return the model card: metadata for the Hub, code that loads the checkpoint, and results.

    Args:
        config: the checkpoint's config.
        results: scores to show in the text, and as `model-index` in the metadata.
        license: license of the adapters and the head.
        has_image: whether the card shows the image of predictions.
    """
    names = {kind: getattr(config, f"{kind}_name_or_path") for kind in ("vision", "text")}
    trained = config.train_backbones
    parts = [
        _front_matter({} if trained else names, results, license),
        CARD_HEADING,
        METHOD if not trained else FULL_TUNING,
        image_section(results) if has_image else "",
        "" if trained else backbones_section(names),
        usage_section({} if trained else names),
        peft_section(config),
    ]
    if results is not None:
        parts += [results_section(results), training_section(results)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _front_matter(names: Mapping[str, str | None], results: TrainingResults | None, license: str) -> str:
    bases = [name for name in names.values() if name and is_hub_name(name)]
    data = ModelCardData(
        # Not peft: the Hub would look for an adapter_config.json in the root, count no downloads without it, and show
        # "Task type is invalid" instead of code.
        library_name="detris-peft",
        pipeline_tag="image-segmentation",
        license=license,
        base_model=bases or None,
        base_model_relation="adapter" if bases else None,
        datasets=[_identifier(name) for name in results.trained_on or [results.dataset]] if results else None,
        tags=["referring-image-segmentation", "detris", "detris_peft", "peft"],
        model_name="DETRIS" if results else None,
        eval_results=_eval_results(results) or None if results else None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _eval_results(results: TrainingResults) -> list[EvalResult]:
    """Return the scores for `model-index`: those that are not published as results of a benchmark."""
    published = {benchmark.metric for benchmark in results.benchmarks}
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Referring image segmentation",
            dataset_type=_identifier(results.dataset),
            dataset_name=plain_name(results.dataset),
            dataset_split=results.split,
            metric_type=name,
            metric_name=name,
            metric_value=round(value, 6),
        )
        for name, value in results.scores.items()
        if name not in published
    ]


def _identifier(dataset: str) -> str:
    """Return a dataset's name as a valid Hub id, which cannot contain a plus sign."""
    return re.sub(r"[^\w./-]+", "-", plain_name(dataset).replace("+", "plus"))
