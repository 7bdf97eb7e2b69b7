"""The model card of a checkpoint (README.md): metadata for the Hub, results, and code that loads it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ..atomic import write_text
from ..manifest import update_manifest
from .configuration_detris import DetrisConfig
from .encoders import backbone_class

CARD_FILE = "README.md"
CARD_HEADING = "# DETRIS: adapters and mask head"
# Placeholder for the repository id, filled in on push.
REPO_ID_PLACEHOLDER = "path/or/repository"

# Options shown in the card. Others may contain local paths and are never shown.
_SHOWN = (
    "preset",
    "position_interpolation",
    "keep_aspect_ratio",
    "epochs",
    "batch_size",
    "num_processes",
    "gradient_accumulation_steps",
    "learning_rate",
    "backbone_learning_rate",
    "warmup_steps",
    "milestones",
    "gamma",
    "max_grad_norm",
    "mixed_precision",
    "ema_decay",
    "augment",
    "seed",
)
_PERCENT_METRICS = re.compile(r"mIoU|oIoU|gIoU|cIoU|Pr@[\d.]+|[NT]-acc")


@dataclass
class TrainingResults:
    """Scores of a checkpoint, and what it was trained on.

    Attributes:
        metrics: scores in [0, 1], keyed by name. Of all other entries only `epoch` and `step` are shown.
        dataset: the evaluated dataset, such as "refcoco" or a Hub id.
        split: the evaluated split.
        trained_on: the training datasets; default: the evaluated one.
        options: the options in `run.json`; the card shows those that describe the training.
    """

    metrics: Mapping[str, float]
    dataset: str
    split: str
    trained_on: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def write_model_card(folder: str | os.PathLike, results: TrainingResults | None = None) -> None:
    """Replace the model card of a folder written by `save_pretrained` with one that shows results."""
    folder = Path(folder)
    write_text(folder / CARD_FILE, model_card(DetrisConfig.from_pretrained(folder), results))
    update_manifest(folder, CARD_FILE)


def model_card(config: DetrisConfig, results: TrainingResults | None = None, *, license: str = "apache-2.0") -> str:
    """Return the model card: metadata for the Hub, code that loads the checkpoint, and results.

    Args:
        config: the checkpoint's config.
        results: scores to show in the text, and as `model-index` in the metadata.
        license: license of the adapters and the head.
    """
    names = {kind: getattr(config, f"{kind}_name_or_path") for kind in ("vision", "text")}
    trained = config.train_backbones
    parts = [
        _front_matter({} if trained else names, results, license),
        _INTRODUCTION,
        _METHOD if not trained else _FULL_TUNING,
        "" if trained else _backbones(names),
        _usage({} if trained else names),
        _peft(config),
    ]
    if results is not None:
        parts += [_results(results), _training(results)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def is_hub_name(name: str) -> bool:
    """Return whether a backbone's name is a Hub id rather than a local folder."""
    return not (name.startswith(".") or os.path.isabs(name) or os.path.isdir(name))


def _front_matter(names: Mapping[str, str | None], results: TrainingResults | None, license: str) -> str:
    bases = [name for name in names.values() if name and is_hub_name(name)]
    data = ModelCardData(
        library_name="peft",
        pipeline_tag="image-segmentation",
        license=license,
        base_model=bases or None,
        base_model_relation="adapter" if bases else None,
        datasets=[_identifier(name) for name in results.trained_on or [results.dataset]] if results else None,
        tags=["referring-image-segmentation", "detris", "detris_peft"],
        model_name="DETRIS" if results else None,
        eval_results=_eval_results(results) if results else None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _eval_results(results: TrainingResults) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Referring image segmentation",
            dataset_type=_identifier(results.dataset),
            dataset_name=_plain(results.dataset),
            dataset_split=results.split,
            metric_type=name,
            metric_name=name,
            metric_value=round(value, 6),
        )
        for name, value in _metrics(results).items()
    ]


def _metrics(results: TrainingResults) -> dict[str, float]:
    return {name: float(value) for name, value in results.metrics.items() if _PERCENT_METRICS.fullmatch(name)}


def _plain(dataset: str) -> str:
    """Return a dataset's name without local paths."""
    return dataset if is_hub_name(dataset) else Path(dataset).resolve().name


def _identifier(dataset: str) -> str:
    """Return a dataset's name as a valid Hub id, which cannot contain a plus sign."""
    return re.sub(r"[^\w./-]+", "-", _plain(dataset).replace("+", "plus"))


_INTRODUCTION = CARD_HEADING
_METHOD = """
Adapters and mask head that let a frozen image encoder and a frozen text encoder segment the object that a referring
expression describes ([DETRIS](https://arxiv.org/abs/2501.08580)). Trained with `detris_peft`.
"""
_FULL_TUNING = """
An image encoder, a text encoder and a mask head that segment the object that a referring expression describes, with
the head of [DETRIS](https://arxiv.org/abs/2501.08580). All of their weights were trained, with `detris_peft`, and are
included: the encoders in `vision_backbone/` and `text_backbone/`.
"""


def _backbones(names: Mapping[str, str | None]) -> str:
    lines = ["The frozen backbones are not included; `from_pretrained` loads them by name:", ""]
    for kind, name in names.items():
        if not name:
            where = f"not named; pass it as `{kind}_model=...`"
        elif is_hub_name(name):
            where = f"[{name}](https://huggingface.co/{name})"
        else:
            where = "a folder next to the checkpoint; move both together"
        lines.append(f"- {'image' if kind == 'vision' else kind} encoder: {where}")
    return "\n".join(lines)


def _usage(names: Mapping[str, str | None]) -> str:
    passed = "".join(f", {kind}_model={kind}_model" for kind, name in names.items() if not name)
    return f"""
## Use

```python
from PIL import Image
from detris_peft import DetrisForReferringSegmentation, DetrisProcessor

model = DetrisForReferringSegmentation.from_pretrained("{REPO_ID_PLACEHOLDER}"{passed})
processor = DetrisProcessor.from_pretrained("{REPO_ID_PLACEHOLDER}")

image = Image.open("photo.jpg")
inputs = processor(images=image, text="the red mug on the left")
outputs = model(**inputs)
mask = processor.post_process_referring_segmentation(outputs, inputs["target_sizes"])[0]  # (H, W), bool
```
"""


def _peft(config: DetrisConfig) -> str:
    if config.vision_adapter is None or not config.vision_name_or_path or not is_hub_name(config.vision_name_or_path):
        return ""
    if config.position_interpolation != "backbone":  # the adapter was trained over a modified encoder
        return ""
    encoder = backbone_class(config.vision_config).__name__
    takes_text = getattr(config.vision_adapter, "takes_text_states", False)
    note = " It also takes `text_states`, the text encoder's last hidden states." if takes_text else ""
    revision = f', revision="{config.vision_revision}"' if config.vision_revision else ""
    return f"""
The image encoder with its adapter, in peft.{note}

```python
import detris_peft  # registers the adapter types with peft
from peft import PeftModel
from transformers import {encoder}

image_encoder = {encoder}.from_pretrained("{config.vision_name_or_path}"{revision})
image_encoder = PeftModel.from_pretrained(image_encoder, "{REPO_ID_PLACEHOLDER}", subfolder="vision_adapter")
```
"""


def _results(results: TrainingResults) -> str:
    metrics = _metrics(results)
    if not metrics:
        return ""
    when = " and ".join(f"{name} {results.metrics[name]}" for name in ("epoch", "step") if name in results.metrics)
    return f"""
## Results

On the split `{results.split}` of {_plain(results.dataset)}{f", after {when}" if when else ""}, in %. mIoU is the
mean IoU of the samples, oIoU the ratio of the summed intersections and unions, Pr@t the share of samples with an IoU
above t.

| {" | ".join(metrics)} |
|{"---|" * len(metrics)}
| {" | ".join(f"{100 * value:.2f}" for value in metrics.values())} |
"""


def _training(results: TrainingResults) -> str:
    shown = {name: results.options[name] for name in _SHOWN if results.options.get(name) is not None}
    if not shown:
        return ""
    rows = "\n".join(f"| {name} | {value} |" for name, value in shown.items())
    data = ", ".join(map(_plain, results.trained_on or [results.dataset]))
    return f"## Training\n\nTrained on {data}.\n\n| option | value |\n|---|---|\n{rows}"
