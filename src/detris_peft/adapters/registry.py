"""Registration of our tuner types with peft: the only file that touches peft's registries."""

from __future__ import annotations

from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method


def register(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Register a config and a tuner as a peft type, under which adapters of this config are saved and loaded.

    A subclass of an adapter's config or tuner needs a type of its own. Registering the same classes again is safe.

    `register_peft_method` requires a member of the `PeftType` enum, and peft has no public way to add one.

    Args:
        name: name of the type in lower case, such as `"dense_aligner"`; files contain it in upper case.
        config_cls: class of the config.
        model_cls: class of the tuner.

    Raises:
        ValueError: the name is invalid, or belongs to another class.

    Example:
        >>> @dataclass
        ... class WideAlignerConfig(DenseAlignerConfig):
        ...     dim: int = 256
        >>> class WideAlignerModel(DenseAlignerModel):
        ...     config_cls = WideAlignerConfig
        >>> register("wide_aligner", WideAlignerConfig, WideAlignerModel)
    """
    if not name.isidentifier() or not name.islower() or name.endswith("_"):
        raise ValueError(f"name={name!r}: expected lower-case letters, digits and underscores, such as dense_aligner.")
    member: Any = _peft_type(name.upper())
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(member)
    if known is None:
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls, prefix=model_cls.prefix)
    elif (known.__module__, known.__qualname__) == (config_cls.__module__, config_cls.__qualname__):
        # The module was imported again, which creates the classes again.
        PEFT_TYPE_TO_CONFIG_MAPPING[member] = config_cls
        PEFT_TYPE_TO_TUNER_MAPPING[member] = model_cls
    else:
        raise ValueError(f"name={name!r}: this type belongs to {known.__name__}; choose another name.")


def registered_type(config_cls: type[PeftConfig]) -> Any:
    """Return the peft type of a config class; that of its nearest registered base if it has none of its own."""
    types = {registered: peft_type for peft_type, registered in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return next((types[base] for base in config_cls.__mro__ if base in types), None)


def check_registered(config: PeftConfig) -> None:
    """Raise a ValueError if a config would be loaded as another class, because its own is not registered."""
    if PEFT_TYPE_TO_CONFIG_MAPPING.get(config.peft_type) is not type(config):  # type: ignore[arg-type]
        raise ValueError(
            f"{type(config).__name__}: expected a config whose class has a peft type of its own, got one that would "
            f"be loaded as {type_name(config.peft_type)}; call detris_peft.adapters.register for it."
        )


def type_name(peft_type: Any) -> str:
    """Return the name of a peft type as files contain it."""
    return str(getattr(peft_type, "value", peft_type))


def _peft_type(value: str) -> PeftType:
    """Return a member of peft's enum, which is added if missing."""
    if value not in PeftType.__members__:
        member = str.__new__(PeftType, value)
        member._name_ = member._value_ = value
        type.__setattr__(PeftType, value, member)
        PeftType._member_names_.append(value)
        PeftType._member_map_[value] = member
        PeftType._value2member_map_[value] = member
    return PeftType[value]
