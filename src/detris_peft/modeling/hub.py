"""Push checkpoints to the Hub, each as one atomic commit."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..atomic import MANIFEST, recover
from ..errors import one_line
from ..safe_loading import read_json
from .card_sections import REPO_ID_PLACEHOLDER
from .checkpoint import (
    ADAPTERS,
    CHECKPOINT_FILES,
    PROCESSOR_FILES,
    absent_folders,
    check_complete,
    read_config,
    save_checkpoint,
)
from .configuration_detris import DetrisConfig
from .hub_download import WRITE_ACCESS, explain
from .model_card import CARD_ATTACHMENTS, CARD_FILE, is_hub_name

# The files that are pushed; others in the folder are ignored.
_FILES = (*CHECKPOINT_FILES, *PROCESSOR_FILES)


def check_hub_access(repo_id: str, token: str | bool | None = None) -> None:
    """Check Hub connectivity and write access before training.

    Sends one read-only request. The permissions of a fine-grained token are not checked in detail.

    Raises:
        ValueError: `repo_id` is invalid.
        PermissionError: the token is rejected, is read-only, or has no access to the repository's owner.
        OSError: the Hub cannot be reached.
    """
    _check_name(repo_id)
    with _one_line_errors(f"Cannot push to {repo_id}"):
        account = HfApi(token=token).whoami()
    user, organizations = account["name"], {o["name"].lower(): o for o in account.get("orgs", ())}
    owner = repo_id.split("/")[0] if "/" in repo_id else user
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    problem = None
    if role == "read":
        problem = f"the token of {user} is read-only"
    elif owner.lower() != user.lower() and owner.lower() not in organizations:
        problem = f"the token belongs to {user}, who is not a member of {owner}"
    elif organizations.get(owner.lower(), {}).get("roleInOrg") == "read":
        problem = f"{user} has read access only to {owner}"
    if problem:
        raise PermissionError(f"Cannot push to {repo_id}: {problem}; {WRITE_ACCESS}.")


def check_backbones_on_hub(config: DetrisConfig) -> None:
    """Check that all frozen backbones are on the Hub, so that others can load a checkpoint of this config.

    Raises:
        ValueError: a backbone is a local folder.
    """
    for kind in () if config.train_backbones else ADAPTERS:
        name = getattr(config, f"{kind}_name_or_path")
        if name and not is_hub_name(name):
            raise ValueError(
                f"expected a {kind} backbone on the Hub, got the local folder {name}; upload it and pass its Hub id "
                f"(--{kind}_model, or {kind}_name_or_path in the config)."
            )


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Upload a checkpoint, with the processor's files if the folder contains them, in one commit.

    The repository does not change before that commit, so an interrupted upload is harmless. Adapters of an earlier
    checkpoint that this one does not have are removed in the same commit.

    Args:
        folder: written by `save_pretrained` of the model, and of the processor.
        repo_id: `user/name`; created if missing.
        token: Hub token; default: that of `hf auth login` or HF_TOKEN.
        private: whether a new repository is private.
        commit_message, commit_description: message and description of the commit.
        revision: branch, created if missing; default: main.
        create_pr: open a pull request instead of committing to the branch.

    Raises:
        ValueError: `repo_id` is invalid, or a backbone is a local folder, which others could not load.
        FileNotFoundError: a file of the checkpoint is missing.
        PermissionError: the Hub rejects the token.
        OSError: the upload failed for another reason. This message and that of a PermissionError contain the folder
            with the weights and the command that pushes them again.
    """
    folder = Path(folder)
    recover(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: expected a folder written by save_pretrained, got one without config.json."
        )
    config = read_config(folder)
    check_complete(folder, config)
    check_backbones_on_hub(config)
    _check_name(repo_id)
    again = ["hf", "upload", repo_id, str(folder), *(["--revision", revision] if revision else [])]
    kept = f"the weights are saved in {folder}; to push them again: {shlex.join(again)}"
    with _one_line_errors(f"Push to {repo_id} failed", kept):
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        present = api.list_repo_files(repo_id, revision=revision)
        # Not `upload_folder`, which may split one folder into several commits with Xet.
        return api.create_commit(
            repo_id,
            operations=_operations(folder, config, repo_id, present),
            commit_message=commit_message or "Upload DETRIS adapters and mask head",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def push_model(model: Any, repo_id: str, adapter_name: str | None = None, **commit: Any) -> CommitInfo:
    """Upload a model; see `DetrisForReferringSegmentation.push_to_hub`."""
    check_backbones_on_hub(model.config)
    _check_name(repo_id)
    folder = tempfile.mkdtemp(prefix="detris-")
    try:
        save_checkpoint(model, folder, adapter_name=adapter_name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    info = push_folder(folder, repo_id, **commit)  # on failure the folder is kept; the message names it
    shutil.rmtree(folder, ignore_errors=True)
    return info


def _operations(
    folder: Path, config: DetrisConfig, repo_id: str, present: list[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    absent = tuple(f"{name}/" for name in sorted(absent_folders(config)))
    stale = [name for name in present if absent and name.startswith(absent)]
    attached = _attachments(folder)
    if MANIFEST in present and not (folder / MANIFEST).is_file():  # that of another checkpoint
        stale.append(MANIFEST)
    stale += [name for name in CARD_ATTACHMENTS if name in present and name not in attached]  # likewise
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationDelete(name, is_folder=False) for name in stale
    ]
    for name in _FILES:
        file = folder / name
        if not file.is_file() or (absent and name.startswith(absent)):
            continue
        if name in CARD_ATTACHMENTS and name not in attached:
            continue
        content: str | bytes = str(file)
        if name == CARD_FILE:  # the example code loads the checkpoint from this repository
            content = file.read_text(encoding="utf-8").replace(REPO_ID_PLACEHOLDER, repo_id).encode()
        operations.append(CommitOperationAdd(name, content))
    return operations


def _attachments(folder: Path) -> set[str]:
    """Return the image and the results that `write_model_card` wrote, and no files of the same name from elsewhere."""
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    return {name for name in CARD_ATTACHMENTS if name in manifest and (folder / name).is_file()}


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"expected a Hub repository id (user/name), got {repo_id!r}: {one_line(error)}") from None


@contextmanager
def _one_line_errors(what: str, kept: str = "") -> Iterator[None]:
    """Turn any error of a Hub request into an OSError with a one-line message."""
    try:
        yield
    except Exception as error:  # httpx, hf_xet and huggingface_hub raise exceptions with no other common base
        kind, reason = explain(error, WRITE_ACCESS)
        raise kind(f"{what}: {reason}{'; ' if kept else ''}{kept}.") from error
