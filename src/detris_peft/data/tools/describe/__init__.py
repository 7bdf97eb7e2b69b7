"""Referring expressions for datasets with instance masks and classes but no sentences (`detris data describe`)."""

from typing import TYPE_CHECKING

from ....lazy_names import lazy_names

if TYPE_CHECKING:
    from .writer import DescribedSplit, describe_dataset
else:
    __getattr__, __dir__ = lazy_names(__name__, {"writer": ("DescribedSplit", "describe_dataset")})

__all__ = ["DescribedSplit", "describe_dataset"]
