"""Finished checkpoints to the Hub: each in one commit, so that a revision is whole or is not there."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from .checkpoint import ADAPTER_FILE, ADAPTERS, HEAD_FILE, check_complete, read_config, save_checkpoint
from .configuration_detris import DetrisConfig
from .model_card import CARD_FILE, PLACE, is_hub_name

if TYPE_CHECKING:
    from .modeling_detris import DetrisForReferringSegmentation

# What is pushed of a folder, whatever else lies in it.
_FILES = (
    CARD_FILE,
    "config.json",
    HEAD_FILE,
    *(f"{folder}/{name}" for folder in ADAPTERS.values() for name in ("adapter_config.json", ADAPTER_FILE)),
    # The processor's
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
_LOG_IN = "log in with one that may write there (hf auth login, or HF_TOKEN)"


def check_hub_access(repo_id: str, token: str | bool | None = None) -> None:
    """Before hours of work: is the Hub there, and may this token write to the repository's owner?

    One request, which changes nothing. What a fine-grained token may do in detail is not looked at.

    Raises:
        ValueError: `repo_id` is no name.
        PermissionError: the token is refused, may only read, or belongs to somebody else.
        OSError: the Hub cannot be reached.
    """
    _check_name(repo_id)
    with _in_one_line(f"{repo_id} cannot be pushed to"):
        account = HfApi(token=token).whoami()
    user, organizations = account["name"], {o["name"].lower(): o for o in account.get("orgs", ())}
    owner = repo_id.split("/")[0] if "/" in repo_id else user
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    refused = None
    if role == "read":
        refused = f"{user}'s token may only read"
    elif owner.lower() != user.lower() and owner.lower() not in organizations:
        refused = f"the token is {user}'s, who does not belong to {owner}"
    elif organizations.get(owner.lower(), {}).get("roleInOrg") == "read":
        refused = f"{user} may only read in {owner}"
    if refused:
        raise PermissionError(f"{repo_id} cannot be pushed to: {refused}: {_LOG_IN}.")


def check_backbones_on_hub(config: DetrisConfig) -> None:
    """Could others load a checkpoint of this config?

    Raises:
        ValueError: a backbone is a local folder.
    """
    for kind in ADAPTERS:
        name = getattr(config, f"{kind}_name_or_path")
        if name and not is_hub_name(name):
            raise ValueError(
                f"The {kind} backbone is the local folder {name}, which nobody else has: upload it, and give its "
                f"Hub name (--{kind}_model, or {kind}_name_or_path in the config)."
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
    """Upload a finished checkpoint, and the processor's files if they lie beside it, in one commit.

    Until that commit the repository stays as it was, so an upload that breaks off harms nothing. Adapters of an
    earlier checkpoint that this one does not have are removed with it.

    Args:
        folder: as `save_pretrained` of the model, and of the processor, wrote it.
        repo_id: `user/name`; made if missing.
        token: by default the one that `hf auth login` or HF_TOKEN gave.
        private: whether a new repository is.
        commit_message, commit_description: of the commit.
        revision: a branch, made if missing; the main one by default.
        create_pr: open a pull request in place of a commit to the branch.

    Raises:
        ValueError: `repo_id` is no name, or a backbone is a local folder, which nobody else could load.
        FileNotFoundError: the folder lacks a file of the checkpoint.
        PermissionError: the token is refused.
        OSError: the upload failed otherwise. All messages say where the weights are and how to push them again.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: give a folder that save_pretrained wrote.")
    config = read_config(folder)
    check_complete(folder, config)
    check_backbones_on_hub(config)
    _check_name(repo_id)
    again = ["hf", "upload", repo_id, str(folder), *(["--revision", revision] if revision else [])]
    kept = f"the weights are whole in {folder}; to push them again: {shlex.join(again)}"
    with _in_one_line(f"{repo_id} was not pushed to", kept):
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        # Not `upload_folder`: with Xet it may spread one folder over several commits.
        return api.create_commit(
            repo_id,
            operations=_operations(folder, config, repo_id, there),
            commit_message=commit_message or "Upload DETRIS adapters and mask head",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def push_model(model: DetrisForReferringSegmentation, repo_id: str, **commit: Any) -> CommitInfo:
    """Upload a model; see `DetrisForReferringSegmentation.push_to_hub`."""
    check_backbones_on_hub(model.config)
    _check_name(repo_id)
    folder = tempfile.mkdtemp(prefix="detris-")
    try:
        save_checkpoint(model, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    info = push_folder(folder, repo_id, **commit)  # where this fails the folder stays, and the message names it
    shutil.rmtree(folder, ignore_errors=True)
    return info


def _operations(
    folder: Path, config: DetrisConfig, repo_id: str, there: list[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    absent = tuple(f"{name}/" for name in ADAPTERS.values() if getattr(config, name) is None)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationDelete(name, is_folder=False) for name in there if absent and name.startswith(absent)
    ]
    for name in _FILES:
        file = folder / name
        if not file.is_file() or (absent and name.startswith(absent)):
            continue
        content: str | bytes = str(file)
        if name == CARD_FILE:  # its lines load the checkpoint from where it now is
            content = file.read_text(encoding="utf-8").replace(PLACE, repo_id).encode()
        operations.append(CommitOperationAdd(name, content))
    return operations


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} cannot be the name of a Hub repository ({error}) Give user/name.") from None


@contextmanager
def _in_one_line(what: str, kept: str = "") -> Iterator[None]:
    """Whatever goes wrong between here and the Hub becomes an OSError of one line."""
    try:
        yield
    except Exception as error:  # httpx, hf_xet and huggingface_hub raise classes that share no other base
        kind, why = _reason(error)
        raise kind(f"{what}: {why}{'; ' if kept else ''}{kept}.") from error


def _reason(error: Exception) -> tuple[type[OSError], str]:
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for link in chain:
        if isinstance(link, OfflineModeIsEnabled):
            return ConnectionError, "HF_HUB_OFFLINE is set: unset it"
        if isinstance(link, LocalTokenNotFoundError):
            return PermissionError, f"there is no token: {_LOG_IN}"
        if isinstance(link, HfHubHTTPError):
            status = link.response.status_code
            said = " ".join((link.server_message or link.response.reason_phrase).split())
            if status in (401, 403):
                return PermissionError, f"the Hub refuses the token ({status}, {said}): {_LOG_IN}"
            return OSError, f"the Hub answers {status} ({said})"
    root = chain[-1]
    return (
        ConnectionError,
        f"the Hub cannot be reached, or the upload broke off ({type(root).__name__}: {_line(root)})",
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
