"""Train, val and test splits by image, near-duplicates kept in one split (`detris data split`)."""

from typing import TYPE_CHECKING

from ....lazy_names import lazy_names

if TYPE_CHECKING:
    from .result import SplitResult
    from .splitting import split_dataset
else:
    __getattr__, __dir__ = lazy_names(__name__, {"result": ("SplitResult",), "splitting": ("split_dataset",)})

__all__ = ["SplitResult", "split_dataset"]
