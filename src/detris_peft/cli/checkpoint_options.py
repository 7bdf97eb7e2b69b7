"""Options that select a trained model, shared by `detris evaluate`, `predict`, `demo` and `export`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic import recover

if TYPE_CHECKING:
    from ..modeling import DetrisForReferringSegmentation
    from ..processing_detris import DetrisProcessor


@dataclass
class CheckpointArguments:
    """Options that select a trained model.

    Raises:
        FileNotFoundError: a path is given that does not exist.
        ValueError: the folder is no checkpoint; the message names the folder that is meant, if there is one.
    """

    checkpoint: str = field(metadata={"help": "folder or Hub id of a trained model"})
    revision: str | None = field(
        default=None, metadata={"help": "branch, tag or commit of the Hub repository; default: its main branch"}
    )
    subfolder: str = field(default="", metadata={"help": "folder of the checkpoint within --checkpoint"})

    def __post_init__(self) -> None:
        check_checkpoint_name(self.checkpoint, "--checkpoint", self.subfolder)
        if self.revision is not None and Path(self.checkpoint).is_dir():
            raise ValueError(
                f"--revision: expected a Hub id as --checkpoint, got the folder {self.checkpoint}; omit it."
            )


def check_checkpoint_name(name: str, option: str, subfolder: str = "") -> None:
    """Raise an error if a name is neither the folder of a checkpoint nor a possible Hub id.

    Args:
        name: the name.
        option: the option that names it, for the message.
        subfolder: folder of the checkpoint within a local one.

    Raises:
        FileNotFoundError: a path is given that does not exist.
        ValueError: the folder is no checkpoint; the message names the folder that is meant, if there is one.
    """
    if not name:
        raise ValueError(f"{option}: expected a folder or Hub id, got an empty name; pass one.")
    path = Path(name)
    recover(path)  # a save that was interrupted
    if path.is_dir():
        check_checkpoint_folder(path / subfolder, "--subfolder" if subfolder else option)
    elif path.exists():
        fix = "convert a released .pth with `detris convert`" if path.suffix == ".pth" else "pass its folder"
        raise ValueError(f"{option} {name}: expected a folder or Hub id, got a file; {fix}.")
    elif path.is_absolute() or len(path.parts) > 2 or name.startswith((".", "~")):
        raise FileNotFoundError(f"{option} {name}: expected a folder or Hub id, found no such folder; check the path.")


def check_checkpoint_folder(folder: Path, option: str) -> None:
    """Raise an error if a folder is not a checkpoint; the message names the folder that is probably meant.

    Args:
        folder: the folder.
        option: the option that names it, for the message.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is not a checkpoint.
    """
    recover(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{option} {folder}: expected a checkpoint, found no such folder; check the path.")
    if (folder / "config.json").is_file():
        return
    for name in ("best", "last"):
        if (folder / name / "config.json").is_file():
            raise ValueError(f"{option} {folder}: expected a checkpoint, got a run; pass {folder / name}.")
    if (folder / "run.json").is_file() or (folder / "checkpoints").is_dir():
        raise ValueError(f"{option} {folder}: expected a checkpoint, got a run without one; resume its training.")
    for parent in folder.resolve().parents[:2]:  # an adapter, or the training state of a run at one step
        found = next((p for p in (parent, parent / "best") if (p / "head.safetensors").is_file()), None)
        if found is not None:
            raise ValueError(f"{option} {folder}: expected a checkpoint, got another folder of a run; pass {found}.")
    raise ValueError(f"{option} {folder}: expected a checkpoint, found no config.json in it; check the path.")


def load_checkpoint(arguments: CheckpointArguments) -> tuple[DetrisForReferringSegmentation, DetrisProcessor]:
    """Load a model, in eval mode, and the processor that was saved with it.

    Raises:
        OSError, ValueError: the checkpoint cannot be loaded, or model and processor do not belong together.
    """
    from ..modeling import DetrisForReferringSegmentation
    from ..processing_detris import DetrisProcessor, check_processor

    options: dict[str, Any] = {"revision": arguments.revision, "subfolder": arguments.subfolder}
    options = {name: value for name, value in options.items() if value}
    model = DetrisForReferringSegmentation.from_pretrained(arguments.checkpoint, **options)
    processor = DetrisProcessor.from_pretrained(arguments.checkpoint, **options)
    check_processor(model.config, processor)
    return model, processor


def truncation_notice(tokenizer: Any, expressions: Iterable[str], limit: int) -> str | None:
    """Return one line about the expressions that are longer than the model reads, or None if there are none.

    Args:
        tokenizer: the tokenizer of the text encoder.
        expressions: the expressions.
        limit: maximum number of tokens per expression, start and end token included.
    """
    from ..tokenization_detris import count_tokens

    texts = [*expressions]
    counts = count_tokens(tokenizer, texts)
    long = [text for text, count in zip(texts, counts, strict=True) if count > limit]
    if not long:
        return None
    return (
        f"{len(long)} of {len(texts)} expressions have more than {limit} tokens and are truncated, as in the paper: "
        f"{long[0]!r}, ..."
    )
