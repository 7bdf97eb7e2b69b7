"""Segment what a sentence refers to in one image.

    python examples/predict.py --checkpoint runs/detris/best --image photo.jpg --text "the man with the glass"

Writes the image with the mask laid over it, and the mask itself (255 inside, 0 outside), both as PNG.
"""

import sys
from pathlib import Path

# Python looks in a script's own folder first, where evaluate.py would be taken for the library of that name.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from detris_peft.cli import run
from detris_peft.cli.predict import main

if __name__ == "__main__":
    run(main)
