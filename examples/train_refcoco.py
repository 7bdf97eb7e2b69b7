"""Train DETRIS on a dataset in REFER's layout (RefCOCO, RefCOCO+, G-Ref, RefShapes).

    accelerate launch examples/train_refcoco.py --preset detris-b --data_root DATA --dataset refcoco --split_by unc
    python examples/train_refcoco.py --config examples/configs/tiny.yaml

Every option can stand in a YAML file too, under its own name; what is given on the command line wins.
"""

import sys
from pathlib import Path

# Python looks in a script's own folder first, where evaluate.py would be taken for the library of that name.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from detris_peft.cli import run
from detris_peft.cli.train import main

if __name__ == "__main__":
    run(main)
