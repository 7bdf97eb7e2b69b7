"""Write backbones to folders, old or new at every moment, and recover folders whose writer was killed."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..atomic import atomic_update_dir, recover, sync_tree
from ..errors import one_line
from ..outputs import mark_folder


def write_backbone(model: PreTrainedModel, folder: str | os.PathLike) -> None:
    """Write a backbone. If the process is killed, `recover_backbone` restores the old or the new one.

    Args:
        model: the plain encoder.
        folder: the folder, created if missing. Other files in it stay.

    Raises:
        OSError: the folder cannot be written, for example because the disk is full; it is unchanged.
    """
    folder = Path(folder)
    try:
        with atomic_update_dir(folder) as staging:
            model.save_pretrained(staging)
            use_default_permissions(staging)
            mark_folder(staging, "backbone")
            sync_tree(staging)
    except (OSError, SafetensorError) as error:  # safetensors does not raise an OSError for a full disk
        raise OSError(
            f"{folder}: the backbone cannot be written ({one_line(error, first_line=True)}); free disk space, or "
            "choose another folder."
        ) from error


def use_default_permissions(folder: Path) -> None:
    """Let others read the weights below a folder as far as its `config.json`: safetensors writes files as private."""
    for file in folder.rglob("*.safetensors"):
        file.chmod((folder / "config.json").stat().st_mode)


def recover_backbone(name: str) -> None:
    """Complete what a killed process was writing, if a backbone is a local folder."""
    folder = Path(os.path.abspath(name))
    if folder.parent.is_dir():
        recover(folder)
