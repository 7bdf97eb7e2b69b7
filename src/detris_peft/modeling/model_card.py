"""The model card that a checkpoint carries as README.md: metadata for the Hub, results, and lines that load it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .configuration_detris import DetrisConfig
from .encoders import backbone_class

CARD_FILE = "README.md"
# Stands in a card for where its checkpoint is, until it is pushed and has a name.
PLACE = "path/or/repository"

# What a reader may want to know of a run. Nothing else is written: other options may be paths of one machine.
_SHOWN = (
    "preset",
    "position_interpolation",
    "keep_aspect_ratio",
    "epochs",
    "batch_size",
    "processes",
    "gradient_accumulation_steps",
    "learning_rate",
    "warmup_steps",
    "milestones",
    "gamma",
    "max_grad_norm",
    "mixed_precision",
    "ema_decay",
    "augment",
    "seed",
)
_PER_CENT = re.compile(r"mIoU|oIoU|gIoU|cIoU|Pr@[\d.]+|[NT]-acc")


@dataclass
class TrainingResults:
    """How well a checkpoint does, and what it was trained on.

    Attributes:
        metrics: by name, each in [0, 1]; of the rest, such as `loss`, only `epoch` and `step` are told.
        dataset: the dataset that was scored, such as "refcoco", or its Hub name.
        split: of it.
        trained_on: the datasets of the training; by default the one that was scored.
        options: of the run, as `run.json` holds them; the card shows those that tell how it was trained.
    """

    metrics: Mapping[str, float]
    dataset: str
    split: str
    trained_on: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def write_model_card(folder: str | os.PathLike, results: TrainingResults | None = None) -> None:
    """Replace the card of a folder that `save_pretrained` wrote by one with results."""
    card = model_card(DetrisConfig.from_pretrained(folder), results)
    (Path(folder) / CARD_FILE).write_text(card, encoding="utf-8")


def model_card(config: DetrisConfig, results: TrainingResults | None = None, *, license: str = "apache-2.0") -> str:
    """Metadata for the Hub, the lines that load the checkpoint, and its results.

    Args:
        config: as the checkpoint holds it.
        results: shown in the text, and as `model-index` in the metadata.
        license: of the adapters and the head.
    """
    names = {kind: getattr(config, f"{kind}_name_or_path") for kind in ("vision", "text")}
    parts = [_front_matter(names, results, license), _INTRODUCTION, _backbones(names), _usage(names), _peft(config)]
    if results is not None:
        parts += [_results(results), _training(results)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def is_hub_name(name: str) -> bool:
    """Whether a backbone's name leads others to it, which that of a local folder does not."""
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
    return {name: float(value) for name, value in results.metrics.items() if _PER_CENT.fullmatch(name)}


def _plain(dataset: str) -> str:
    """A dataset's name without the folders of one machine."""
    return dataset if is_hub_name(dataset) else Path(dataset).resolve().name


def _identifier(dataset: str) -> str:
    """As the Hub spells datasets, which knows no plus."""
    return re.sub(r"[^\w./-]+", "-", _plain(dataset).replace("+", "plus"))


_INTRODUCTION = """
# DETRIS: adapters and mask head

They let a frozen image encoder and a frozen text encoder segment what a sentence refers to
([DETRIS](https://arxiv.org/abs/2501.08580)), and were trained with `detris_peft`.
"""


def _backbones(names: Mapping[str, str | None]) -> str:
    lines = ["The frozen backbones are not in here; `from_pretrained` loads them by their names:", ""]
    for kind, name in names.items():
        if not name:
            where = f"not named: pass it as `{kind}_model=...`"
        elif is_hub_name(name):
            where = f"[{name}](https://huggingface.co/{name})"
        else:
            where = "a folder beside the checkpoint, which must move with it"
        lines.append(f"- {'image' if kind == 'vision' else kind} encoder: {where}")
    return "\n".join(lines)


def _usage(names: Mapping[str, str | None]) -> str:
    passed = "".join(f", {kind}_model={kind}_model" for kind, name in names.items() if not name)
    return f"""
## Use

```python
from PIL import Image
from detris_peft import DetrisForReferringSegmentation, DetrisProcessor

model = DetrisForReferringSegmentation.from_pretrained("{PLACE}"{passed})
processor = DetrisProcessor.from_pretrained("{PLACE}")

image = Image.open("photo.jpg")
inputs = processor(images=image, text="the red mug on the left")
outputs = model(**inputs)
mask = processor.post_process_referring_segmentation(outputs, inputs["target_sizes"])[0]  # (H, W), bool
```
"""


def _peft(config: DetrisConfig) -> str:
    if config.vision_adapter is None or not config.vision_name_or_path or not is_hub_name(config.vision_name_or_path):
        return ""
    if config.position_interpolation != "backbone":  # the adapter was not trained over the encoder as it is
        return ""
    encoder = backbone_class(config.vision_config).__name__
    revision = f', revision="{config.vision_revision}"' if config.vision_revision else ""
    return f"""
The image encoder with its adapter, by peft. It takes `text_states` too: the text encoder's last hidden states.

```python
import detris_peft  # registers the adapter types with peft
from peft import PeftModel
from transformers import {encoder}

image_encoder = {encoder}.from_pretrained("{config.vision_name_or_path}"{revision})
image_encoder = PeftModel.from_pretrained(image_encoder, "{PLACE}", subfolder="vision_adapter")
```
"""


def _results(results: TrainingResults) -> str:
    metrics = _metrics(results)
    if not metrics:
        return ""
    when = " and ".join(f"{name} {results.metrics[name]}" for name in ("epoch", "step") if name in results.metrics)
    return f"""
## Results

On the split `{results.split}` of {_plain(results.dataset)}{f", after {when}" if when else ""}, in percent. mIoU is
the mean of the samples' IoU, oIoU the quotient of the sums of intersections and unions, Pr@t the share of samples
whose IoU is above t.

| {" | ".join(metrics)} |
|{"---|" * len(metrics)}
| {" | ".join(f"{100 * value:.2f}" for value in metrics.values())} |
"""


def _training(results: TrainingResults) -> str:
    shown = {name: results.options[name] for name in _SHOWN if name in results.options}
    if not shown:
        return ""
    rows = "\n".join(f"| {name} | {value} |" for name, value in shown.items())
    data = ", ".join(map(_plain, results.trained_on or [results.dataset]))
    return f"## Training\n\nOn {data}.\n\n| option | value |\n|---|---|\n{rows}"
