"""Score a saved checkpoint on any split of a dataset in REFER's layout.

    python examples/evaluate.py --checkpoint runs/detris/best --data_root DATA --dataset refcoco --split testA

Validation takes each reference's first sentence and a test split takes all of them, as the paper does.
"""

import sys
from pathlib import Path

# Python looks in a script's own folder first, where evaluate.py would be taken for the library of that name.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from detris_peft.cli import run
from detris_peft.cli.evaluate import main

if __name__ == "__main__":
    run(main)
