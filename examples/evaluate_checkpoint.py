"""Evaluate a saved checkpoint on any split of a dataset.

    python examples/evaluate_checkpoint.py --checkpoint runs/b/best --data_root DATA --dataset refcoco --split testA

Validation uses the first expression of each reference, a test split uses all of them, as in the paper.
"""

from detris_peft.cli import run
from detris_peft.cli.evaluate import main

if __name__ == "__main__":
    run(main)
