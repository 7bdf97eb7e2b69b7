"""Registration of our tuner types with peft: the only file that touches peft's registries."""

from __future__ import annotations

from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method


def register(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Register `name` as a peft type. Idempotent, so reloading or importing twice is safe.

    `register_peft_method` requires a member of the `PeftType` enum, and peft has no public way to add one.
    """
    member_name = name.upper()
    if member_name not in PeftType.__members__:
        member = str.__new__(PeftType, member_name)
        member._name_ = member._value_ = member_name
        type.__setattr__(PeftType, member_name, member)
        PeftType._member_names_.append(member_name)
        PeftType._member_map_[member_name] = member
        PeftType._value2member_map_[member_name] = member
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
