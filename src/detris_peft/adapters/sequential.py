"""Sequential adapters: their branches follow a module of the backbone, inside the residual connection."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from .block_layouts import IMAGE_BLOCKS, TEXT_BLOCKS
from .config import SequentialAdapterConfig
from .layer import AdapterLayer
from .model import AdapterModel


class SequentialAdapterLayer(AdapterLayer):
    """A backbone module followed by adapter branches: `y = x + Σ scale · branch(x)` for the module's output x.

    All active adapters get the same x: their outputs are summed, as in LoRA, and not applied one after the other.
    Subclasses implement `make_branch`.
    """

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = self.base_layer(*args, **kwargs)
        return self.add_branches(result, lambda: self.check_output(result))

    def check_output(self, result: Any) -> tuple[torch.Tensor]:
        """Return the argument of the branch. Raise a ValueError if the wrapped module has an unexpected output."""
        shape = tuple(result.shape) if isinstance(result, torch.Tensor) else f"a {type(result).__name__}"
        if isinstance(shape, str) or shape[-1:] != (self.width,):
            raise ValueError(
                f"target_modules: expected modules whose output is a tensor of width {self.width}, got {shape} from "
                f"{type(self.get_base_layer()).__name__}; target the MLP of a block, or the output projection of its "
                "attention."
            )
        return (result,)


class SequentialAdapterModel(AdapterModel):
    """An encoder with sequential adapters, for images or text. It is called like the plain encoder."""

    tuner_layer_cls: type[SequentialAdapterLayer]
    config_cls: ClassVar[type[SequentialAdapterConfig]]
    layouts: ClassVar = {**IMAGE_BLOCKS, **TEXT_BLOCKS}

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        known = self.layouts.get(model_config.get("model_type", ""))
        if peft_config.target_modules is None:
            if known is None:
                raise ValueError(
                    f"{type(self).__name__}: expected a known backbone type ({', '.join(self.layouts)}), got "
                    f"{model_config.get('model_type')!r}; set target_modules (the MLP of a block, the output "
                    "projection of its attention, or both) in the config."
                )
            places = [known.mlp, known.attention_output] if peft_config.after_attention else [known.mlp]
            peft_config.target_modules = set(places)
        return super()._prepare_adapter_config(peft_config, model_config)

    def _connect(self, layer: Any, peft_config: Any, key: str) -> None:
        """Raise a ValueError for the attention of a known block, which returns a tuple: earlier than the forward."""
        known = self.layouts.get(self.get_model_config(self.model).get("model_type", ""))
        block = peft_config.match_block(key)
        if known and block and key == f"{block.group(1)}.{known.attention_output.partition('.')[0]}":
            raise ValueError(
                f"target_modules: expected modules whose output is a tensor, got {key!r}, which returns a tuple; "
                f"target its output projection, {known.attention_output}, or set after_attention=True."
            )
