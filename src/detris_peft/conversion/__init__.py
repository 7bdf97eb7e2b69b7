"""Convert released checkpoints and original backbone files to this library's formats and back."""

from .official_checkpoint import compare_backbone, load_official_checkpoint, read_official, save_official_checkpoint

__all__ = ["compare_backbone", "load_official_checkpoint", "read_official", "save_official_checkpoint"]
