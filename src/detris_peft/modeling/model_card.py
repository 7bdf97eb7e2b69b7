"""The model card that a checkpoint carries as README.md."""

from __future__ import annotations

from huggingface_hub import ModelCardData

from .configuration_detris import DetrisConfig


def model_card(config: DetrisConfig) -> str:
    """Metadata for the Hub and the lines that load the checkpoint."""
    bases = [n for n in (config.vision_name_or_path, config.text_name_or_path) if n]
    data = ModelCardData(
        library_name="peft",
        pipeline_tag="image-segmentation",
        license="apache-2.0",
        base_model=[b for b in bases if not b.startswith(".")] or None,
        tags=["referring-image-segmentation", "detris", "detris_peft"],
    )
    return f"""---
{data.to_yaml()}
---

# DETRIS adapters and mask head

Adapters and mask head of [DETRIS](https://arxiv.org/abs/2501.08580), trained with `detris_peft`. The frozen backbones
are not in here; they are loaded from where `config.json` says
({", ".join(f"`{b}`" for b in bases) or "not named: pass them to `from_pretrained`"}).

```python
from detris_peft import DetrisForReferringSegmentation, DetrisProcessor

model = DetrisForReferringSegmentation.from_pretrained("path/or/repository")
processor = DetrisProcessor.from_pretrained("path/or/repository")
inputs = processor(images=image, text="the red mug on the left", return_tensors="pt")
outputs = model(**inputs)
mask = processor.post_process_referring_segmentation(outputs, inputs["target_sizes"])[0]
```

The image adapter alone, with peft (the import registers the adapter type):

```python
import detris_peft
from peft import PeftModel

adapted = PeftModel.from_pretrained(image_encoder, "path/or/repository", subfolder="vision_adapter")
```
"""
