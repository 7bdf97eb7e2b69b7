"""Training loop built on accelerate: single- or multi-process, interruptible and resumable."""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .arguments import TrainingArguments
    from .signals import TrainingInterrupted
    from .trainer import train
else:
    __getattr__, __dir__ = lazy_names(
        __name__, {"arguments": ["TrainingArguments"], "signals": ["TrainingInterrupted"], "trainer": ["train"]}
    )

__all__ = ["TrainingArguments", "TrainingInterrupted", "train"]
