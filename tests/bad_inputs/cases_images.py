"""Images that cannot be read."""

from tests.bad_inputs.case import Case, write

CASES = [
    Case(
        "image is text",
        "predict --checkpoint run/best --image bad.png --text square --output out.png",
        ("bad.png", "expected an image", "pass another file"),
        write("bad.png", "not an image"),
    ),
]
