"""The image of predictions in a model card: small enough for a web page."""

from __future__ import annotations

from io import BytesIO

from ..images import Source, open_image

CARD_IMAGE_FILE = "assets/detris_predictions.jpg"
MAX_BYTES = 1_000_000

_MAX_SIDE = 1600  # pixels: twice the width of a card, for screens with a high pixel density
_QUALITIES = (88, 75, 60, 40)


def card_image(source: Source) -> bytes:
    """Return an image as a JPEG of at most 1600 pixels per side and 1 MB.

    Args:
        source: path, bytes, or file opened in binary mode; transparent pixels become white.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not an image, or it is damaged.
    """
    image = open_image(source)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = image.copy()
        white.paste("white", (0, 0, *image.size))
        white.alpha_composite(image)
        image = white
    image = image.convert("RGB")
    image.thumbnail((_MAX_SIDE, _MAX_SIDE), reducing_gap=2.0)
    content = b""
    for quality in _QUALITIES:  # at the last one, even random noise of this size is below the limit
        stream = BytesIO()
        image.save(stream, "JPEG", quality=quality, optimize=True)
        content = stream.getvalue()
        if len(content) <= MAX_BYTES:
            break
    return content
