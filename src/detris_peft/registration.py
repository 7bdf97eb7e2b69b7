"""Registration with peft and transformers, which happens when one of them is imported, or at once where it already is.

Importing peft takes seconds, so that `import detris_peft` does not import it. Registering needs our own modules, which
import names from peft and transformers. It must therefore wait until none of these modules is only half imported: both
`import peft` and `from detris_peft.adapters import DenseAlignerConfig` import the others on their way.
"""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module
from types import ModuleType

import wrapt

_LIBRARIES = ("peft", "transformers")
_PACKAGE = __name__.rpartition(".")[0]

_executed: set[str] = set()  # modules that have run completely, although Python may not have marked them as imported


def register_on_import() -> None:
    """Register with peft and transformers once one of them is imported.

    Only the first call has an effect, so that the package can be reloaded.
    """
    if _executed:
        return
    _executed.add(__name__)
    # Of our own packages, all that are imported below have an `__init__` that imports their modules, so that it is
    # sufficient to wait for the packages.
    for module in pkgutil.iter_modules(sys.modules[_PACKAGE].__path__, f"{_PACKAGE}."):
        if module.name not in sys.modules:
            wrapt.register_post_import_hook(_after_import, module.name)
    for name in _LIBRARIES:
        if name in sys.modules:
            import_module(name)  # waits for another thread that is importing it
        wrapt.register_post_import_hook(_after_import, name)


def _after_import(module: ModuleType) -> None:
    """Register, unless a module that this needs is only half imported: then this function is called again after it."""
    _executed.add(module.__name__)
    if any(name in sys.modules for name in _LIBRARIES) and not any(map(_is_half_imported, [*sys.modules])):
        _register()


def _is_half_imported(name: str) -> bool:
    """Return whether a library or one of our modules or packages is running, in this thread or another one."""
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
