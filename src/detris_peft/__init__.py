"""DETRIS for Hugging Face models: adapters with which frozen encoders segment what a sentence refers to."""

__version__ = "0.1.0.dev0"
