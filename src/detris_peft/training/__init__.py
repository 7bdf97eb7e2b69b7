"""Training loop built on accelerate: single- or multi-process, interruptible and resumable."""

from .arguments import TrainingArguments
from .signals import TrainingInterrupted
from .trainer import train

__all__ = ["TrainingArguments", "TrainingInterrupted", "train"]
