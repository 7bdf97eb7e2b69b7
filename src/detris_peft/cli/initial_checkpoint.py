"""The checkpoint from which training starts (`--init_from`): its architecture, tokenizer and weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from .. import presets
from ..adapters.config import as_list
from ..comparison.settings import as_json
from ..errors import one_line
from ..hashes import sha256_of_weights
from ..modeling import DetrisConfig, DetrisForReferringSegmentation
from ..modeling.adapter_configs import adapter_dict
from ..modeling.checkpoint import check_complete, find_folder, read_config
from ..modeling.checkpoint.files import weight_files
from ..modeling.encoders import first_difference
from ..processing_detris import DetrisProcessor
from ..safe_loading import read_json, read_safetensors
from ..tokenization_detris import load_tokenizer
from ..training import TrainingArguments
from ..training.run_json import RUN_FILE
from .backbone_options import KINDS, BackboneArguments
from .backbone_selection import Backbone, load_backbone, select_backbones
from .checkpoint_options import check_checkpoint_name
from .config_changes import apply_config_options
from .train_options import RunArguments

_ADAPTERS = ("vision_adapter", "text_adapter")
# Fields that may differ from the checkpoint's, because its weights fit any of their values. All others of
# `DetrisConfig` are the architecture, except the names of the backbones.
_CHANGEABLE = (
    "image_size",
    "max_text_length",
    "mask_threshold",
    "dropout",
    "loss_weights",
    "vision_revision",
    "text_revision",
)
_NAMES = ("vision_name_or_path", "text_name_or_path")
_SAVED = ("last", "best")  # checkpoints of a run, any of which has its architecture and tokenizer
_SHOWN_DIFFERENCES = 4
_ERRORS = (FileNotFoundError, PermissionError, ConnectionError, OSError, ValueError)
# Fields of adapters that concern new weights only, or that peft sets.
_SET_WHEN_LOADED = {"init_weights", "base_model_name_or_path", "task_type", "revision", "auto_mapping"}


@dataclass
class InitialCheckpoint:
    """A checkpoint from which training starts, or a run that started from one and is resumed.

    Attributes:
        name: the folder or Hub id given by `--init_from`.
        folder: local folder with its files.
        config: its config, in which local backbones have absolute paths.
        is_resumed: whether the weights are those of a checkpoint to resume from, so that none are loaded here.
        sha256: hash of its weights; None if the run was started without recording it.
    """

    name: str
    folder: Path
    config: DetrisConfig
    is_resumed: bool
    sha256: str | None

    @property
    def record(self) -> dict[str, str | None]:
        """Return what `run.json` holds: the name, with an absolute path for a folder, and the hash of the weights."""
        return {"init_from": _absolute(self.name), "init_from_sha256": self.sha256}

    @property
    def description(self) -> str:
        """One line about where the weights are from."""
        if self.is_resumed:
            return f"The run was started from {self.name}; its own weights are loaded to resume it."
        return f"Starting from the weights of {self.name}."

    def create_config(
        self, run: RunArguments, arguments: BackboneArguments, folder: Path
    ) -> tuple[DetrisConfig, dict[str, Backbone]]:
        """Return the config of the model and its backbones. Nothing is written.

        Args:
            run: the preset, if one is given, and the given fields of `DetrisConfig`.
            arguments: options that select the backbones.
            folder: folder for backbones that have to be written.

        Raises:
            ValueError: the given options describe another architecture than the checkpoint's; the message names the
                fields that differ.
        """
        given = dict(run.config_fields)
        chosen = {kind for kind in KINDS if _is_chosen(arguments, kind)}
        if self.config.train_backbones and chosen:
            kind = sorted(chosen)[0]
            raise ValueError(
                f"--init_from {self.name}: expected no option for the {kind} backbone, because the checkpoint "
                "contains its trained encoders, got one; remove it."
            )
        for kind in KINDS:
            if kind not in chosen and getattr(self.config, f"{kind}_revision"):
                given.setdefault(f"{kind}_revision", getattr(self.config, f"{kind}_revision"))
            if kind not in chosen and not getattr(self.config, f"{kind}_name_or_path"):
                raise ValueError(
                    f"--init_from {self.name}: expected a checkpoint that names its {kind} backbone, got one that "
                    f"does not; pass --{kind}_model."
                )
        selected = select_backbones(self.config, arguments, given, folder)
        asked = self._asked(run, selected, chosen, given)
        config = copy.deepcopy(self.config)
        for name in _CHANGEABLE:
            if name in given:
                setattr(config, name, getattr(asked, name))
        for kind, backbone in selected.items():
            config.name_backbone(kind, backbone.name)
        config.validate_architecture()
        config.check_inputs()
        return config, selected

    def _asked(
        self, run: RunArguments, selected: Mapping[str, Backbone], chosen: set[str], given: Mapping[str, Any]
    ) -> DetrisConfig:
        """Return the config that the options describe, after checking that it has the checkpoint's architecture."""
        preset = presets.get(run.preset) if run.preset else None
        asked = {kind: getattr(preset or self.config, f"{kind}_config") for kind in KINDS}
        asked |= {kind: selected[kind].config for kind in chosen}
        differences = []
        for kind in KINDS:
            if difference := first_difference(asked[kind], getattr(self.config, f"{kind}_config")):
                name, got, expected = difference
                differences.append(f"{kind}_config.{name}: expected {expected}, got {got}")
        self._refuse(differences)
        encoders = self.config.vision_config, self.config.text_config
        config = preset.scaled_to(*encoders) if preset else copy.deepcopy(self.config)
        config = apply_config_options(config, given)
        self._refuse(_differences(_architecture(self.config), _architecture(config)))
        return config

    def _refuse(self, differences: list[str]) -> None:
        if not differences:
            return
        shown = differences[:_SHOWN_DIFFERENCES]
        shown += [f"and {len(differences) - len(shown)} more"] if len(differences) > len(shown) else []
        raise ValueError(
            f"--init_from {self.name}: expected the architecture of the checkpoint, got another one "
            f"({'; '.join(shown)}); remove these options, or --preset, to use the checkpoint's, or train without "
            "--init_from."
        )

    def load_processor(self, run: RunArguments, arguments: BackboneArguments, config: DetrisConfig) -> DetrisProcessor:
        """Return the processor of the checkpoint, with the fields that options change.

        Raises:
            OSError, ValueError: the checkpoint has no processor and no tokenizer is given, or one is given that
                differs from the checkpoint's.
        """
        tokenizer = load_tokenizer(arguments.tokenizer) if arguments.tokenizer else None
        if tokenizer is not None and not (self.folder / "processor_config.json").is_file():
            processor = DetrisProcessor.from_config(config, tokenizer)  # a checkpoint of transformers' Trainer
        else:
            with _naming(self.name):
                processor = DetrisProcessor.from_pretrained(self.folder)
        if tokenizer is not None and tokenizer.get_vocab() != processor.tokenizer.get_vocab():
            raise ValueError(
                f"--tokenizer {arguments.tokenizer}: expected the vocabulary of the checkpoint {self.name}, got "
                "another one; remove --tokenizer."
            )
        for name in ("image_size", "max_text_length", "mask_threshold"):
            if name in run.config_fields:
                setattr(processor, name, getattr(config, name))
        if run.keep_aspect_ratio is not None:
            processor.keep_aspect_ratio = run.keep_aspect_ratio
        return processor

    def load_model(self, config: DetrisConfig, tokenizer: PreTrainedTokenizerBase) -> DetrisForReferringSegmentation:
        """Return the model to train, in training mode, with the weights of the checkpoint.

        The weights that are trained are float32, whatever the checkpoint's are. A resumed run gets new weights, which
        are replaced by those of the checkpoint that it resumes from.

        Raises:
            OSError, ValueError: the checkpoint or a backbone cannot be loaded.
        """
        if config.train_backbones:  # the checkpoint contains the encoders
            with _naming(self.name):
                model = DetrisForReferringSegmentation.from_pretrained(self.folder, config=config, dtype=torch.float32)
            return model.train()
        vision_model, text_model = (load_backbone(config, kind) for kind in KINDS)
        if self.is_resumed:
            return DetrisForReferringSegmentation.from_backbones(vision_model, text_model, config, tokenizer)
        with _naming(self.name):
            model = DetrisForReferringSegmentation.from_pretrained(
                self.folder, config=config, vision_model=vision_model, text_model=text_model
            )
        return model.train()


def find_initial_checkpoint(name: str, training: TrainingArguments) -> InitialCheckpoint:
    """Return the checkpoint that `--init_from` names, after checking its files.

    A run that is resumed takes its architecture and its tokenizer from its own folder as soon as it has been
    evaluated once, so that the initial checkpoint may have been removed since.

    Args:
        name: folder or Hub id.
        training: the training arguments.

    Raises:
        FileNotFoundError: there is no such checkpoint, or it lacks a file.
        ValueError: the checkpoint is damaged, `--overwrite` would delete it, or the resumed run started from another
            one.
        OSError: the Hub cannot be reached.
    """
    run_folder = _resumed_run(training)
    recorded = check_recorded(name, training)
    saved = [
        run_folder / folder for folder in _SAVED if run_folder and (run_folder / folder / "config.json").is_file()
    ]
    if saved:
        return InitialCheckpoint(name, saved[0], _read_config(saved[0]), True, recorded.get("init_from_sha256"))
    check_checkpoint_name(name, "--init_from")
    _check_kept(name, training)
    with _naming(name):
        folder = find_folder(name)
        config = _read_config(folder)
        check_complete(folder, config)
        weights = {file: read_safetensors(folder / file) for file in weight_files(config)}
    flat = ((f"{file}: {key}", value) for file, values in weights.items() for key, value in sorted(values.items()))
    return InitialCheckpoint(name, folder, config, run_folder is not None, sha256_of_weights(flat))


def check_recorded(name: str | None, training: TrainingArguments) -> dict[str, Any]:
    """Return the options with which a resumed run was started; empty if no run is resumed.

    Args:
        name: the value of `--init_from`.
        training: the training arguments.

    Raises:
        ValueError: the resumed run started from another checkpoint than `name`.
    """
    folder = _resumed_run(training)
    if folder is None or not (folder / RUN_FILE).is_file():
        return {}
    content = read_json(folder / RUN_FILE)
    options = content.get("options") if isinstance(content, dict) else None
    if not isinstance(options, dict):
        return {}
    expected = options.get("init_from")
    if expected not in (name, name and _absolute(name), name and os.path.abspath(name)):
        fix = f"pass --init_from {expected}" if expected else "remove --init_from"
        raise ValueError(
            f"--init_from: expected {expected or 'none'}, from which the run in {folder} was started, got "
            f"{name or 'none'}; {fix}, or start a new run in another output_dir."
        )
    return options


def _resumed_run(training: TrainingArguments) -> Path | None:
    """Return the folder of the run that is resumed; None if there is no checkpoint to resume from."""
    if training.resume is None:
        return None
    if training.resume == "latest":
        folder = Path(training.output_dir)
        return folder if any(folder.glob("checkpoints/step-*")) else None
    return Path(training.resume).absolute().parents[1]


def _check_kept(name: str, training: TrainingArguments) -> None:
    """Raise a ValueError if `--overwrite` would delete the checkpoint."""
    folder, output = Path(name).resolve(), Path(training.output_dir)
    deleted = [(output / part).resolve() for part in ("best", "last", "checkpoints")]
    if training.overwrite and any(folder.is_relative_to(part) for part in deleted):
        raise ValueError(
            f"--init_from {name}: expected a checkpoint outside {output}, got one that --overwrite deletes; choose "
            "another output_dir, or copy the checkpoint to another folder."
        )


def _read_config(folder: Path) -> DetrisConfig:
    """Return the config of a checkpoint, in which local backbones have absolute paths."""
    config = read_config(folder)
    for kind in KINDS:
        name = getattr(config, f"{kind}_name_or_path")
        if name and name.startswith("."):
            config.name_backbone(kind, str((folder / name).resolve()))
    return config


def _is_chosen(arguments: BackboneArguments, kind: str) -> bool:
    original = {"vision": arguments.dino, "text": arguments.clip}[kind]
    return bool(getattr(arguments, f"{kind}_model") or original)


def _architecture(config: DetrisConfig) -> dict[str, Any]:
    """Return the fields on which the meaning of the weights depends, those of the adapters under dotted names."""
    skipped = {*_CHANGEABLE, *_NAMES, *_ADAPTERS, "vision_config", "text_config"}
    fields = {name: getattr(config, name) for name in DetrisConfig.__annotations__ if name not in skipped}
    fields["bridger"] = config.bridger and config.bridger.to_dict()
    for name in _ADAPTERS:
        adapter = getattr(config, name)
        values = {} if adapter is None else adapter_dict(adapter)
        if "layers_to_transform" in values:  # one block is written as 3 or as [3]
            values["layers_to_transform"] = as_list(values["layers_to_transform"])
        fields[name] = None if adapter is None else values.pop("peft_type")
        fields |= {f"{name}.{key}": value for key, value in values.items() if key not in _SET_WHEN_LOADED}
    return as_json({name: value for name, value in fields.items() if name != "model_type"})


def _differences(expected: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    """Describe the fields that differ. If an adapter is of another type, its other fields are not listed."""
    names = [name for name in {**expected, **got} if expected.get(name) != got.get(name)]
    replaced = tuple(f"{name}." for name in _ADAPTERS if name in names)
    return [
        f"{name}: expected {expected.get(name)}, got {got.get(name)}"
        for name in names
        if not (replaced and name.startswith(replaced))
    ]


def _absolute(name: str) -> str:
    return os.path.abspath(name) if Path(name).is_dir() else name


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Add `--init_from` to the message of an error."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        kind = next(each for each in _ERRORS if isinstance(error, each))  # not a subclass that takes other arguments
        raise kind(f"--init_from {name}: {one_line(error)}") from error
