"""Referring expressions for datasets with instance masks and classes but no sentences (`detris data describe`)."""

from .writer import DescribedSplit, describe_dataset

__all__ = ["DescribedSplit", "describe_dataset"]
