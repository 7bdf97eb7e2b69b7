"""`python -m detris_peft.data.refshapes ROOT` writes the dataset."""

from .generate import main

main()
