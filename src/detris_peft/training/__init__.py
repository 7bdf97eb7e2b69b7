"""The training loop, over accelerate: one process or many, stopped at any moment and gone on with."""

from .arguments import TrainingArguments
from .signals import TrainingInterrupted
from .trainer import train

__all__ = ["TrainingArguments", "TrainingInterrupted", "train"]
