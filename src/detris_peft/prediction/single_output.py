"""The files of a prediction for one image and one sentence: the overlay and its mask."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..atomic import atomic_write_file
from ..errors import one_line
from .row_predictor import encode_image


def write_prediction(output: Path, overlay_image: Image.Image, mask_file: Path, mask_image: Image.Image) -> None:
    """Write the overlay and its mask, both or none.

    The overlay is renamed last. If the process is killed before, there is no overlay, rather than one next to the mask
    of another prediction.

    Args:
        output: PNG or JPEG file for the overlay, by its suffix; its folder is created if missing.
        overlay_image: the overlay.
        mask_file: PNG file for the mask.
        mask_image: the mask, 255 inside and 0 outside.

    Raises:
        OSError: a file cannot be written, for example because the disk is full.
        ValueError: the overlay is too large for a JPEG.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write_file(output) as overlay_part, atomic_write_file(mask_file) as mask_part:
            for part, image in ((overlay_part, overlay_image), (mask_part, mask_image)):
                part.write_bytes(encode_image(image, part.suffix))
            output.unlink(missing_ok=True)
    except ValueError as error:
        raise ValueError(f"--output {output}: {error}") from None
    except OSError as error:
        written = f"; only {mask_file} was written" if mask_file.exists() and not output.exists() else ""
        reason = error.strerror or one_line(error)
        raise OSError(
            f"--output {output}: cannot be written ({reason}){written}; free some space or choose another path."
        ) from None
