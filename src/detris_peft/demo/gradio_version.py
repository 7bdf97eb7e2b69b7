"""The check that Gradio is installed in a version that the page supports."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

REQUIRED = "gradio>=6,<7"


def gradio_version() -> str:
    """Return the version of the installed Gradio.

    Raises:
        ImportError: Gradio is not installed, or in a version that the page does not support.
    """
    try:
        found = version("gradio")
    except PackageNotFoundError:
        raise ImportError(
            f"demo: expected Gradio to be installed, found no such package; run: pip install '{REQUIRED}'."
        ) from None
    if found.split(".")[0] != "6":
        raise ImportError(f"demo: expected Gradio 6, got {found}; run: pip install '{REQUIRED}'.")
    return found
