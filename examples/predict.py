r"""Segment what expressions refer to in images: `detris predict` as a script.

    python examples/predict.py --checkpoint runs/b/best --image photo.jpg --text "the man with the glass"

writes the image with the mask as an overlay, and the mask itself (255 inside, 0 outside). Many rows on several GPUs:

    accelerate launch --config_file examples/accelerate/ddp.yaml --num_processes 4 examples/predict.py \
        --checkpoint runs/b/best --pairs pairs.csv --output predictions
"""

from detris_peft.cli import run
from detris_peft.cli.predict import main

if __name__ == "__main__":
    run(main)
