"""What a visitor of the page may send, and how long the server keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

# For requests other than uploads, which contain sentences, a threshold, and names of uploaded files.
MAX_REQUEST_BYTES = 100_000
# Files of visitors (uploads, masks) are removed after this time.
FILE_LIFETIME = 1800  # seconds
# Probability maps that are kept, so that another threshold needs no forward pass.
CACHE_BYTES = 256_000_000
MAX_EXAMPLES = 12
# Longer side of the images that the page shows; downloads have the original size.
MIN_DISPLAY_SIZE, DISPLAY_SIZE = 480, 1024  # pixels

_RANGES = {
    "max_queue": (1, 10_000),
    "max_upload_mb": (1, 1_000),
    "max_megapixels": (1, 178),  # Pillow refuses images from 178.9 megapixels on
    "max_sentences": (1, 100),
    "max_characters": (1, 10_000),
}


@dataclass(frozen=True)
class DemoLimits:
    """What visitors of the page may send.

    Raises:
        ValueError: a value is out of range; the message names the option.
    """

    max_queue: int = field(
        default=32,
        metadata={"help": "maximum number of requests that wait for the model; further requests get a message"},
    )
    max_upload_mb: int = field(default=20, metadata={"help": "maximum size of an uploaded image file, in MB"})
    max_megapixels: int = field(default=25, metadata={"help": "maximum size of an uploaded image, in megapixels"})
    max_sentences: int = field(default=8, metadata={"help": "maximum number of sentences per request"})
    max_characters: int = field(default=300, metadata={"help": "maximum number of characters per sentence"})

    def __post_init__(self) -> None:
        for option in fields(self):
            value, (low, high) = getattr(self, option.name), _RANGES[option.name]
            if not low <= value <= high:
                raise ValueError(f"--{option.name}: expected {low} to {high}, got {value}; change it.")
