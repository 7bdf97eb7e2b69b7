"""The dataset card that a converted dataset carries as README.md."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub import DatasetCardData


def dataset_card(name: str, counts: Mapping[str, int]) -> str:
    """README.md of a converted dataset: which files are which split, and what is in them.

    Args:
        name: the dataset's.
        counts: rows by split.
    """
    data = DatasetCardData(
        pretty_name=name,
        task_categories=["image-segmentation"],
        tags=["referring-image-segmentation", "detris_peft"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*"} for split in counts],
            }
        ],
    )
    table = "\n".join(f"| {split} | {count:,} |" for split, count in counts.items())
    return f"""---
{data.to_yaml()}
---

# {name}

Images, sentences that refer to something in them, and masks, for referring image segmentation. Written by
`detris data convert`. Images are the original files, byte for byte; **their license and that of the annotations
stay what they were.**

| split | rows |
|---|---|
{table}

| column | |
|---|---|
| `image` | the image |
| `sentences`, `sent_ids` | every sentence that refers to the target, and their ids |
| `mask` | `size` [H, W] and `counts`: compressed COCO RLE, of the image turned upright as its EXIF tag says |
| `no_target` | the sentences refer to nothing in the image; the mask is empty |
| `ref_id`, `ann_id`, `ann_ids`, `image_id`, `category_id` | ids, unique within one `dataset` |
| `dataset`, `split`, `file_name` | where the row comes from |

```python
from datasets import load_dataset
from detris_peft.data import decode_mask

row = load_dataset("path/or/repository", split="{next(iter(counts))}")[0]
row["image"], row["sentences"], decode_mask(row["mask"])
```

To train on it: `detris train --dataset path/or/repository`.
"""
