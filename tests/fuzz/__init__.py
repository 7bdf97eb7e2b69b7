"""Fuzzing of every reader of untrusted files: `make fuzz`. A short version runs with the other tests."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any Hugging Face import
