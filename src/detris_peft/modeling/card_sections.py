"""Sections of the model card, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .card_image import CARD_IMAGE_FILE
from .configuration_detris import DetrisConfig
from .encoders import backbone_class
from .training_results import TrainingResults, is_hub_name, plain_name

CARD_HEADING = "# DETRIS: adapters and mask head"
# Placeholder for the repository id, filled in on push.
REPO_ID_PLACEHOLDER = "path/or/repository"

# Options shown in the card. Others may contain local paths and are never shown.
_SHOWN = (
    "preset",
    "recipe",
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
    "precision",
    "ema_decay",
    "augment",
    "seed",
)

METHOD = """
Adapters and mask head that let a frozen image encoder and a frozen text encoder segment the object that a referring
expression describes ([DETRIS](https://arxiv.org/abs/2501.08580)). Trained with `detris_peft`.
"""
FULL_TUNING = """
An image encoder, a text encoder and a mask head that segment the object that a referring expression describes, with
the head of [DETRIS](https://arxiv.org/abs/2501.08580). All of their weights were trained, with `detris_peft`, and are
included: the encoders in `vision_backbone/` and `text_backbone/`.
"""


def image_section(results: TrainingResults | None) -> str:
    """Return the image of predictions with its alternative text."""
    data = f" on the split {results.split} of {plain_name(results.dataset)}" if results else ""
    data = re.sub(r"[\[\]\n]", "_", data)  # brackets would end the alternative text
    return f"![Predictions{data}: image with its sentence, ground truth, predicted mask]({CARD_IMAGE_FILE})"


def backbones_section(names: Mapping[str, str | None]) -> str:
    """Return where the frozen backbones are loaded from."""
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


def usage_section(names: Mapping[str, str | None]) -> str:
    """Return code that loads the checkpoint and predicts a mask."""
    passed = "".join(f", {kind}_model={kind}_model" for kind, name in names.items() if not name)
    pipeline = f"""
Or as a pipeline of transformers, which returns a list of `score`, `label` and `mask` (PIL image):

```python
import detris_peft  # registers the pipeline
from transformers import pipeline

pipe = pipeline("referring-image-segmentation", model="{REPO_ID_PLACEHOLDER}")
results = pipe("photo.jpg", text=["the red mug on the left", "the table"])
```
"""
    return f"""
## Use

```python
from detris_peft import DetrisPredictor

predictor = DetrisPredictor.from_pretrained("{REPO_ID_PLACEHOLDER}"{passed})
prediction = predictor("photo.jpg", "the red mug on the left")
prediction.mask  # (H, W), bool, at the size of the image
prediction.score  # mean probability inside the mask
```
{"" if passed else pipeline}"""


def peft_section(config: DetrisConfig) -> str:
    """Return code that loads the image encoder with its adapter in peft; empty if peft alone could not load it."""
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


def results_section(results: TrainingResults) -> str:
    """Return the table of scores."""
    metrics = results.scores
    if not metrics:
        return ""
    when = " and ".join(f"{name} {results.metrics[name]}" for name in ("epoch", "step") if name in results.metrics)
    return f"""
## Results

On the split `{results.split}` of {plain_name(results.dataset)}{f", after {when}" if when else ""}, in %. mIoU is the
mean IoU of the samples, oIoU the ratio of the summed intersections and unions, Pr@t the share of samples with an IoU
above t.

| {" | ".join(metrics)} |
|{"---|" * len(metrics)}
| {" | ".join(f"{100 * value:.2f}" for value in metrics.values())} |
"""


def training_section(results: TrainingResults) -> str:
    """Return the table of training options."""
    shown = {name: results.options[name] for name in _SHOWN if results.options.get(name) is not None}
    if not shown:
        return ""
    rows = "\n".join(f"| {name} | {value} |" for name, value in shown.items())
    data = ", ".join(map(plain_name, results.trained_on or [results.dataset]))
    start = results.options.get("init_from")
    if start:
        data += f", from the weights of {_plain_checkpoint(str(start))}"
    return f"## Training\n\nTrained on {data}.\n\n| option | value |\n|---|---|\n{rows}"


def _plain_checkpoint(name: str) -> str:
    """Return the name of a checkpoint without local paths: a Hub id, or the folder with its run (`flowers/best`)."""
    return name if is_hub_name(name) else "/".join(Path(name).parts[-2:])
