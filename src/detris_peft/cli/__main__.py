"""Entry point of `python -m detris_peft.cli` and `accelerate launch -m detris_peft.cli train`."""

from . import main

if __name__ == "__main__":
    main()
