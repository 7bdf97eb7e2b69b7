"""Train DETRIS on a dataset in the REFER layout (RefCOCO, RefCOCO+, G-Ref, RefShapes).

    accelerate launch examples/train_refcoco.py --preset detris-b --data_root DATA --dataset refcoco --split_by unc
    python examples/train_refcoco.py --config examples/configs/tiny.yaml

Every option can also be set in a YAML file; the command line takes precedence.
"""

from detris_peft.cli import run
from detris_peft.cli.train import main

if __name__ == "__main__":
    run(main)
