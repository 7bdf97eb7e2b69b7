"""Registration with peft and transformers, when one of them is imported, or immediately if it is already imported.

Importing peft takes seconds, so that `import detris_peft` does not import it. Registering needs our own modules, which
import names from peft and transformers. It must therefore wait until none of these modules is partially initialized:
both `import peft` and `from detris_peft.adapters import DenseAlignerConfig` import the others in the process.
"""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module
from types import ModuleType

import wrapt

_LIBRARIES = ("peft", "transformers")
_PACKAGE = __name__.rpartition(".")[0]

_executed: set[str] = set()  # modules that ran completely, although Python may not yet mark them as imported


def register_on_import() -> None:
    """Register with peft and transformers once one of them is imported.

    Only the first call has an effect, so that the package can be reloaded.
    """
    if _executed:
        return
    _executed.add(__name__)
    # Waiting for our packages is sufficient: those that `_register` imports import their own modules in `__init__`.
    for module in pkgutil.iter_modules(sys.modules[_PACKAGE].__path__, f"{_PACKAGE}."):
        if module.name not in sys.modules:
            wrapt.register_post_import_hook(_after_import, module.name)
    for name in _LIBRARIES:
        if name in sys.modules:
            import_module(name)  # waits for another thread that is importing it
        wrapt.register_post_import_hook(_after_import, name)


def _after_import(module: ModuleType) -> None:
    """Register, unless a required module is partially initialized; after its import, this function is called again."""
    _executed.add(module.__name__)
    if any(name in sys.modules for name in _LIBRARIES) and not any(map(_is_partially_initialized, [*sys.modules])):
        _register()


def _is_partially_initialized(name: str) -> bool:
    """Return whether a library or one of our modules is being imported, in this thread or another one."""
    if name not in _LIBRARIES and name.rpartition(".")[0] != _PACKAGE:
        return False
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return name not in _executed and getattr(spec, "_initializing", False)


def _register() -> None:
    from transformers import AutoImageProcessor, AutoProcessor

    from . import adapters, pipelines  # noqa: F401  they register themselves, as the model does
    from .image_processing_detris import DetrisImageProcessor
    from .modeling import DetrisConfig
    from .processing_detris import DetrisProcessor

    # Here to keep the processors independent of the model.
    AutoProcessor.register(DetrisConfig, DetrisProcessor, exist_ok=True)
    # For both backends of transformers, which otherwise warns if its preferred one is missing.
    backends = {"pil": DetrisImageProcessor, "torchvision": DetrisImageProcessor}
    AutoImageProcessor.register(DetrisConfig, image_processor_classes=backends, exist_ok=True)
