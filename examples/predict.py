"""Segment the object that an expression refers to in one image.

    python examples/predict.py --checkpoint runs/b/best --image photo.jpg --text "the man with the glass"

Writes the image with the mask as an overlay, and the mask itself (255 inside, 0 outside), both as PNG.
"""

from detris_peft.cli import run
from detris_peft.cli.predict import main

if __name__ == "__main__":
    run(main)
