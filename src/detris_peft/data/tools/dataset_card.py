"""Dataset card (README.md) of a converted dataset."""

from __future__ import annotations

from collections.abc import Mapping

from .card_text import header, table


def dataset_card(name: str, counts: Mapping[str, int]) -> str:
    """Return the README.md of a converted dataset, which maps files to splits and describes the columns.

    Args:
        name: name of the dataset.
        counts: number of rows, keyed by split.
    """
    files = [{"split": split, "path": f"data/{split}-*"} for split in counts]
    return f"""{header(name, configs=[{"config_name": "default", "data_files": files}])}

# {name}

Images, referring expressions and masks for referring image segmentation. Written by `detris data convert`. Images are
the original files, byte for byte; **the licenses of images and annotations are unchanged.**

{table(("split", "rows"), counts.items())}

| column | |
|---|---|
| `image` | the image |
| `sentences`, `sent_ids` | every sentence that refers to the target, and their ids |
| `mask` | `size` [H, W] and `counts`: compressed COCO RLE, for the image after EXIF rotation |
| `no_target` | the sentences refer to nothing in the image; the mask is empty |
| `ref_id`, `ann_id`, `ann_ids`, `image_id`, `category_id` | ids, unique within one `dataset` |
| `dataset`, `split`, `file_name` | source of the row |

```python
from datasets import load_dataset
from detris_peft.data import decode_mask

row = load_dataset("path/or/repository", split="{next(iter(counts))}")[0]
row["image"], row["sentences"], decode_mask(row["mask"])
```

To train on it: `detris train --dataset path/or/repository`.
"""
