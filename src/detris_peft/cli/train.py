"""Train DETRIS on a data set in REFER's layout (RefCOCO, RefCOCO+, G-Ref, RefShapes)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import AutoTokenizer, HfArgumentParser, set_seed

from .. import DetrisForReferringSegmentation, DetrisProcessor, presets
from ..data import load_refer
from ..tokenization_detris import train_tokenizer
from ..training import TrainingArguments, train
from .backbones import BackboneArguments, load_backbone, name_backbones

_TITLE = "Train DETRIS on a data set in REFER's layout (RefCOCO, RefCOCO+, G-Ref, RefShapes)."


@dataclass
class RunArguments:
    preset: str = field(default="detris-b", metadata={"help": "architecture: " + ", ".join(presets.list())})
    data_root: str = field(default="data", metadata={"help": "folder that holds the data set and images/"})
    dataset: str = field(default="refcoco", metadata={"help": "refcoco, refcoco+, refcocog, refclef or refshapes"})
    split_by: str = field(default="unc", metadata={"help": "who made the splits: unc, umd or google"})
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    val_split: str = field(default="val", metadata={"help": "split to validate on after each epoch"})
    image_folder: str = field(default="images/train2014", metadata={"help": "where the pictures are, below data_root"})
    position_interpolation: str = field(
        default="backbone", metadata={"help": "DINOv2's position table: backbone, or official as the released weights"}
    )
    keep_aspect_ratio: bool = field(
        default=False, metadata={"help": "batches on the smallest canvas that holds them, not on a square"}
    )


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run with these arguments; by default those of the command line."""
    run, backbones, training = parse_arguments(argv, prog)
    if find_spec("matplotlib") is None:
        raise ValueError("The curves need matplotlib: pip install 'detris-peft[train]'.")
    train_rows, val_rows = (
        load_refer(run.data_root, run.dataset, run.split_by, split, image_folder=run.image_folder)
        for split in (run.train_split, run.val_split)
    )

    set_seed(training.seed)  # the fresh adapters and head
    config = presets.get(run.preset)
    config.position_interpolation = run.position_interpolation
    if config.vision_name_or_path is None:  # a preset without pretrained backbones
        with PartialState().main_process_first():
            config = presets.random_backbones(config, Path(training.output_dir) / "backbones", training.seed)
        words = [sentence for sentences in train_rows["sentences"] for sentence in sentences]
        tokenizer = train_tokenizer(words, config.text_config.vocab_size)
    else:
        tokenizer = AutoTokenizer.from_pretrained(
            backbones.tokenizer or backbones.text_model or config.text_name_or_path
        )
    name_backbones(config, backbones, Path(training.output_dir) / "backbones")
    model = DetrisForReferringSegmentation.from_backbones(
        load_backbone(config, "vision"), load_backbone(config, "text"), config
    )
    processor = DetrisProcessor.from_config(config, tokenizer)
    processor.keep_aspect_ratio = run.keep_aspect_ratio
    train(model, processor, train_rows, val_rows, training)


def parse_arguments(
    argv: Sequence[str] | None, prog: str | None
) -> tuple[RunArguments, BackboneArguments, TrainingArguments]:
    classes: Any = (RunArguments, BackboneArguments, TrainingArguments)
    parser = HfArgumentParser(classes, prog=prog, description=_TITLE)
    parser.add_argument("--config", help="YAML file of options")
    file = parser.parse_known_args(argv)[0].config
    if file:
        if find_spec("yaml") is None:
            raise ValueError("--config needs PyYAML: pip install 'detris-peft[train]'.")
        import yaml

        try:
            options = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no file {file}: --config takes a YAML file of options.") from None
        except yaml.YAMLError as error:
            raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(options, dict):
            raise ValueError(f"{file} must hold options by name, `batch_size: 32`, not a {type(options).__name__}.")
        unknown = sorted(set(options) - {action.dest for action in parser._actions})
        if unknown:
            raise ValueError(f"{file}: there is no option {', '.join(unknown)}; see --help.")
        parser.set_defaults(**options)
    run, backbones, training, _ = parser.parse_args_into_dataclasses(argv)
    return run, backbones, training
