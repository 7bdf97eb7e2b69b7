"""Folding of position tables: the table interpolated to the export size becomes a constant of the program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def folded_position_table(encoder: nn.Module, run: Callable[[], Any]) -> Iterator[None]:
    """Replace the interpolation of an image encoder's position table by its result, inside the context.

    Encoders of transformers interpolate their table in `interpolate_pos_encoding`. Encoders without such a method
    (DINOv3 has rotary positions) do not change.

    Args:
        encoder: the image encoder, with or without adapters. Other threads must not use it inside the context.
        run: runs the encoder on images of the export size.
    """
    found: list[Any] = [module for module in encoder.modules() if "interpolate_pos_encoding" in dir(type(module))]
    if len(found) != 1:
        yield
        return
    embeddings, tables = found[0], []

    def record(*args: Any, **kwargs: Any) -> torch.Tensor:
        tables.append(type(embeddings).interpolate_pos_encoding(embeddings, *args, **kwargs))
        return tables[-1]

    try:
        embeddings.interpolate_pos_encoding = record
        run()
        if tables:
            table = tables[-1].detach().clone()
            embeddings.interpolate_pos_encoding = lambda *args, **kwargs: table
        yield
    finally:
        del embeddings.interpolate_pos_encoding
