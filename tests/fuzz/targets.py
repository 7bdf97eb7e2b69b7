"""The readers that are fuzzed. A target reads bytes, in a working folder of its own, and returns or raises an error.

Allowed are `OSError`, `ValueError` and `pickle.UnpicklingError` with a message of one line.
"""

from __future__ import annotations

import json

from detris_peft import DetrisProcessor
from detris_peft.conversion.official_checkpoint import read_official
from detris_peft.conversion.original_backbones import load_original_clip_text, load_original_dinov2
from detris_peft.data import decode_mask
from detris_peft.data.masks import encode_mask, mask_area
from detris_peft.data.readers.coco import load_coco
from detris_peft.data.readers.column_mapping import ColumnMapping
from detris_peft.data.readers.folder import load_folder
from detris_peft.data.readers.refer import load_refer
from detris_peft.images import open_image
from detris_peft.modeling.checkpoint.loading import read_config
from detris_peft.safe_loading import load_plain_pickle, read_checkpoint, read_json, read_safetensors, read_yaml
from tests.fuzz import inputs
from tests.fuzz.label_targets import LABEL_TARGETS
from tests.fuzz.target import HEIGHT, WIDTH, Target, decode_rows, image_file, written


def _image(data: bytes) -> None:
    open_image(data, "image.png")


def _mask_file(data: bytes) -> None:
    image_file("mask/train/a.png")
    line = {"file_name": "a.png", "mask": "m.png", "sentence": "the square"}
    written("mask/train/metadata.jsonl", json.dumps(line).encode())
    written("mask/train/m.png", data)
    decode_rows(load_folder("mask", "train"))


def _segmentation(data: bytes) -> None:
    mask = encode_mask(json.loads(data), HEIGHT, WIDTH)
    assert decode_mask(mask).sum() == mask_area(mask)


def _folder(data: bytes) -> None:
    for name in ("a.png", "b.png"):
        image_file(f"folder/train/{name}")
    written("folder/train/metadata.jsonl", data)
    decode_rows(load_folder("folder", "train"))


def _coco(data: bytes) -> None:
    image_file("coco/a.png")
    decode_rows(load_coco(written("coco/train.json", data)))


def _refer(refs: bytes, instances: bytes) -> None:
    image_file("refer/images/train2014/a.png")
    written("refer/toys/refs(unc).p", refs)
    written("refer/toys/instances.json", instances)
    decode_rows(load_refer("refer", "toys", "unc", "train"))


def _checkpoint(data: bytes) -> None:
    file = written("checkpoint.pth", data)
    for mmap, scripted in ((False, True), (True, False)):
        read_checkpoint(file, "a checkpoint", mmap=mmap, scripted=scripted)
    read_official(file)


def _yaml(data: bytes) -> None:
    repr(read_yaml(written("options.yaml", data)))


def _json(data: bytes) -> None:
    repr(read_json(written("file.json", data)))


def _processor(processor: bytes, tokenizer: bytes) -> None:
    written("processor/processor_config.json", processor)
    written("processor/tokenizer.json", tokenizer)
    written("processor/tokenizer_config.json", (inputs.CHECKPOINT / "tokenizer_config.json").read_bytes())
    DetrisProcessor.from_pretrained("processor")(text="the left circle", return_tensors="pt")


def _column_mapping(data: bytes) -> None:
    ColumnMapping.parse(str(written("columns.yaml", data))).paths()


TARGETS: dict[str, Target] = {
    "image": Target(_image, inputs.image_seeds, inputs.mutated),
    "mask": Target(_mask_file, inputs.mask_seeds, inputs.mutated),
    "segmentation": Target(_segmentation, inputs.segmentation_seeds, inputs.mutated_json),
    "folder": Target(_folder, inputs.folder_seeds, inputs.mutated_json),
    "coco": Target(_coco, inputs.coco_seeds, inputs.mutated_json),
    "instances": Target(
        lambda data: _refer(inputs.refs_seeds()[0], data), inputs.instances_seeds, inputs.mutated_json
    ),
    "references": Target(lambda data: _refer(data, inputs.instances_seeds()[0]), inputs.refs_seeds, inputs.pickles),
    "pickle": Target(lambda data: repr(load_plain_pickle(written("a.p", data))), inputs.refs_seeds, inputs.pickles),
    "checkpoint": Target(_checkpoint, inputs.checkpoint_seeds, inputs.archives),
    "dinov2": Target(
        lambda data: load_original_dinov2(written("dino.pth", data)), inputs.dinov2_seeds, inputs.archives
    ),
    "clip": Target(lambda data: load_original_clip_text(written("clip.pt", data)), inputs.clip_seeds, inputs.archives),
    "safetensors": Target(
        lambda data: read_safetensors(written("a.safetensors", data)),
        inputs.safetensors_seeds,
        inputs.safetensors_files,
    ),
    "json": Target(_json, inputs.config_seeds, inputs.mutated_json),
    "yaml": Target(_yaml, inputs.yaml_seeds, inputs.mutated),
    "columns": Target(_column_mapping, inputs.columns_seeds, inputs.mutated),
    "processor": Target(
        lambda data: _processor(data, inputs.tokenizer_seeds()[0]), inputs.processor_seeds, inputs.mutated_json
    ),
    "tokenizer": Target(
        lambda data: _processor(inputs.processor_seeds()[0], data), inputs.tokenizer_seeds, inputs.mutated_json
    ),
    "config": Target(
        lambda data: read_config(written("model/config.json", data).parent), inputs.config_seeds, inputs.mutated_json
    ),
    **LABEL_TARGETS,
}
