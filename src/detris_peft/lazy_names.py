"""Names of a package that are imported when they are first used (PEP 562), so that the package itself is light."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a package.

    Submodules are imported on first use as well: `import detris_peft; detris_peft.presets`.

    Args:
        package: the package's `__name__`.
        modules: the public names by the submodule that defines them, such as `"readers.coco"`.
    """
    origins = {name: module for module, names in modules.items() for name in names}

    def get_attribute(name: str) -> Any:
        if name in origins:
            value = getattr(import_module(f"{package}.{origins[name]}"), name)
        elif not name.startswith("_") and find_spec(f"{package}.{name}") is not None:
            return import_module(f"{package}.{name}")  # Python itself sets the attribute
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *origins})

    return get_attribute, list_names
