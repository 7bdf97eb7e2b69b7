"""The training loop, over accelerate: one process or many, stopped at any moment and gone on with."""

from .arguments import TrainingArguments
from .loop import train
from .signals import TrainingInterrupted

__all__ = ["TrainingArguments", "TrainingInterrupted", "train"]
