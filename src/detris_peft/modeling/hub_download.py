"""Download checkpoints from the Hub, and say in one line why a request to the Hub failed."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Sequence
from errno import EACCES, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import one_line

WRITE_ACCESS = "log in with a token that has write access (hf auth login, or HF_TOKEN)"
_READ_ACCESS = "log in (hf auth login), or pass token=..."


def download(name: str, subfolder: str, files: Sequence[str], **hub: Any) -> Path:
    """Download some files of a Hub repository, and return the folder in the cache.

    If the Hub cannot be reached, files from the cache are used, with a warning.

    Args:
        name: Hub id.
        subfolder: folder of the files in the repository.
        files: their names. Those that do not exist are skipped.
        hub: keyword arguments of `snapshot_download`.

    Raises:
        FileNotFoundError: there is no such repository or revision, or it is not in the cache.
        PermissionError: it is gated, or the token is rejected.
        ConnectionError: the Hub cannot be reached.
    """
    prefix = "".join(f"{part}/" for part in Path(subfolder).parts)
    patterns = [glob.escape(prefix + file) for file in files]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **hub))
    except Exception as error:  # httpx, hf_xet and huggingface_hub raise exceptions with no other common base
        kind, reason = explain(error, _READ_ACCESS, hub.get("revision"))
        if kind in (ConnectionError, OSError) and not hub.get("local_files_only") and not hub.get("force_download"):
            cached = _cached(name, patterns, hub)
            if cached is not None:
                warnings.warn(f"{name}: {reason}; using the files in the cache.", stacklevel=2)
                return cached
        raise kind(f"{name}: no such folder, and the download from the Hub failed: {reason}.") from error


def _cached(name: str, patterns: list[str], hub: dict[str, Any]) -> Path | None:
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **{**hub, "local_files_only": True}))
    except LocalEntryNotFoundError:
        return None


def explain(error: Exception, log_in: str, revision: str | None = None) -> tuple[type[OSError], str]:
    """Return the type of error to raise for a failed request to the Hub, and its reason in one line.

    Args:
        error: the exception; the reason may be one of its causes.
        log_in: how to get the access that the request needs.
        revision: the revision that was requested.
    """
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if isinstance(error, LocalEntryNotFoundError) and isinstance(chain[-1], OfflineModeIsEnabled):
        return FileNotFoundError, "it is not in the cache, and HF_HUB_OFFLINE is set; check the name, or unset it"
    for link in chain:
        if isinstance(link, HFValidationError):
            return FileNotFoundError, f"{one_line(link).rstrip('.')}; check the path, or pass a Hub id (user/name)"
        if isinstance(link, OfflineModeIsEnabled):
            return ConnectionError, "HF_HUB_OFFLINE is set; unset it"
        if isinstance(link, LocalTokenNotFoundError):
            return PermissionError, f"no token found; {log_in}"
        if isinstance(link, RevisionNotFoundError):
            return FileNotFoundError, f"404, it has no revision {revision!r}; pass an existing branch, tag or commit"
        if isinstance(link, GatedRepoError):
            return PermissionError, f"it is gated; request access on its page, then {log_in}"
        if isinstance(link, RepositoryNotFoundError):
            return FileNotFoundError, f"there is no such repository, or it is private; check the name, or {log_in}"
        if isinstance(link, HfHubHTTPError):
            status = link.response.status_code
            answer = " ".join((link.server_message or link.response.reason_phrase).split())
            if status in (401, 403):
                return PermissionError, f"the Hub rejects the token ({status}, {answer}); {log_in}"
            return OSError, f"the Hub responds with {status} ({answer})"
    root = chain[-1]
    if isinstance(root, LocalEntryNotFoundError):
        return FileNotFoundError, "it is not in the cache, and local_files_only is set; omit it"
    if isinstance(root, OSError) and root.errno in (EACCES, EPERM, EROFS, ENOSPC):
        return OSError, f"the cache cannot be written ({one_line(root)}); free disk space, or set HF_HOME"
    interrupted = (
        f"the Hub cannot be reached, or the transfer was interrupted ({type(root).__name__}: {one_line(root)})"
    )
    return ConnectionError, interrupted
