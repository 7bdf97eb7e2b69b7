"""Train DETRIS on a data set in REFER's layout (RefCOCO, RefCOCO+, G-Ref, RefShapes).

    accelerate launch examples/train_refcoco.py --preset detris-b --data_root DATA --dataset refcoco --split_by unc
    python examples/train_refcoco.py --config examples/configs/tiny.yaml

Every option can stand in a YAML file too, under its own name; what is given on the command line wins.
"""

import sys
from pathlib import Path

# Python looks in a script's own folder first, where evaluate.py would be taken for the library of that name.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

import pickle
from dataclasses import dataclass, field

import transformers
import yaml
from transformers import AutoTokenizer, HfArgumentParser, set_seed

from detris_peft import DetrisConfig, DetrisForReferringSegmentation, DetrisProcessor, presets
from detris_peft.data import load_refer
from detris_peft.processing_detris import train_tokenizer
from detris_peft.training import TrainingArguments, train


@dataclass
class RunArguments:
    preset: str = field(default="detris-b", metadata={"help": "architecture: " + ", ".join(presets.list())})
    data_root: str = field(default="data", metadata={"help": "folder that holds the data set and images/"})
    dataset: str = field(default="refcoco", metadata={"help": "refcoco, refcoco+, refcocog, refclef or refshapes"})
    split_by: str = field(default="unc", metadata={"help": "who made the splits: unc, umd or google"})
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    val_split: str = field(default="val", metadata={"help": "split to validate on after each epoch"})


def main() -> None:
    run, training = parse_arguments()
    train_rows = load_refer(run.data_root, run.dataset, run.split_by, run.train_split)
    val_rows = load_refer(run.data_root, run.dataset, run.split_by, run.val_split)

    set_seed(training.seed)  # the fresh adapters and head
    config = presets.get(run.preset)
    if config.vision_name_or_path is None:  # a preset without pretrained backbones
        config = presets.random_backbones(config, Path(training.output_dir) / "backbones", training.seed)
        words = [sentence for sentences in train_rows["sentences"] for sentence in sentences]
        tokenizer = train_tokenizer(words, config.text_config.vocab_size)
    else:
        tokenizer = AutoTokenizer.from_pretrained(config.text_name_or_path)
    model = DetrisForReferringSegmentation.from_backbones(
        load_backbone(config, "vision"), load_backbone(config, "text"), config
    )
    processor = DetrisProcessor.from_config(config, tokenizer)
    train(model, processor, train_rows, val_rows, training)


def load_backbone(config: DetrisConfig, kind: str) -> transformers.PreTrainedModel:
    architecture = getattr(config, f"{kind}_config").architectures[0]
    return getattr(transformers, architecture).from_pretrained(
        getattr(config, f"{kind}_name_or_path"), revision=getattr(config, f"{kind}_revision") or "main"
    )


def parse_arguments() -> tuple[RunArguments, TrainingArguments]:
    parser = HfArgumentParser((RunArguments, TrainingArguments), description=__doc__.splitlines()[0])
    parser.add_argument("--config", help="YAML file of options")
    file = parser.parse_known_args()[0].config
    if file:
        options = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        unknown = sorted(set(options) - {action.dest for action in parser._actions})
        if unknown:
            raise ValueError(f"{file}: there is no option {', '.join(unknown)}; see --help.")
        parser.set_defaults(**options)
    run, training, _ = parser.parse_args_into_dataclasses()
    return run, training


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, pickle.UnpicklingError) as error:
        sys.exit(f"error: {error}")
