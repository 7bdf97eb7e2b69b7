"""Methods of the model that load, save and push adapter-only checkpoints.

They are separate from `modeling_detris`, so that neither `checkpoint` nor `hub` needs to import the model.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import PreTrainedModel
from typing_extensions import Self

from .checkpoint import load_checkpoint, save_checkpoint
from .hub import push_folder, push_model

_COMMIT_KEYWORDS = ("token", "private", "commit_message", "commit_description", "revision", "create_pr")
# Of transformers: without effect on a checkpoint of a few files.
_IGNORED_KEYWORDS = (
    "distributed_checkpoint",
    "max_shard_size",
    "safe_serialization",
    "save_function",
    "save_original_format",
    "save_peft_format",
    "tags",
    "use_temp_dir",
    "variant",
)


class DetrisHubMixin:
    """`from_pretrained`, `save_pretrained` and `push_to_hub` of [`DetrisForReferringSegmentation`]."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        vision_model: PreTrainedModel | None = None,
        text_model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load adapters and head over the backbones that the checkpoint names. The model is in eval mode.

        With `dtype`, all weights have that dtype, adapters and head included; BatchNorm stays in float32. Without it,
        adapters and head are in float32. `detris_peft.training.train` converts the weights that it trains to float32.

        Args:
            pretrained_model_name_or_path: folder or Hub repository written by `save_pretrained`.
            vision_model, text_model: loaded backbones to use instead of those that the checkpoint names.
            kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` and `subfolder` locate the
                checkpoint; `dtype`, `device_map`, `max_memory`, `offload_folder`, `quantization_config`,
                `attn_implementation` and `use_safetensors` are passed to the backbones.

        Raises:
            FileNotFoundError: the folder or one of its files is missing, or the Hub has no such repository.
            PermissionError: the repository is gated, or the Hub rejects the token.
            ConnectionError: the Hub cannot be reached, and the cache does not contain the checkpoint.
            ValueError: the files are damaged or do not belong together, or the weights do not fit the backbones.
        """
        return load_checkpoint(cls, pretrained_model_name_or_path, vision_model, text_model, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        adapter_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save `config.json`, `vision_adapter/`, `text_adapter/`, `head.safetensors`, a model card and a manifest.

        Other files in the folder stay, also a `README.md` that this method did not write. If the process is killed
        meanwhile, the folder holds the earlier checkpoint or the new one when it is loaded.

        Args:
            save_directory: the folder, created if missing. Files appear in it only after all of them are written.
            is_main_process: if False, write nothing (for the other ranks of a distributed run).
            state_dict: gathered weights to save instead of the module's own (FSDP, DeepSpeed).
            push_to_hub: also upload the folder, with the processor's files if it contains them. `repo_id` (default:
                the folder's name) and the keyword arguments of `push_to_hub` are accepted.
            adapter_name: the adapter to save, for every encoder that has one of this name; default: the active one.
                It is loaded again as "default".
            kwargs: other keyword arguments of transformers' `save_pretrained`, ignored.

        Raises:
            TypeError: an unknown keyword argument.
            ValueError: training changes weights that the checkpoint would not contain, a weight is not finite or on
                the meta device, not exactly one adapter is active, or the folder holds files of another origin with
                the same names. Nothing is written then.
        """
        _check_keywords("save_pretrained", kwargs, (*_COMMIT_KEYWORDS, "repo_id"))
        if is_main_process:
            save_checkpoint(self, save_directory, state_dict, adapter_name)
        if push_to_hub and is_main_process:
            repo_id = kwargs.get("repo_id") or os.path.basename(os.path.normpath(save_directory))
            push_folder(save_directory, repo_id, **{k: kwargs[k] for k in _COMMIT_KEYWORDS if k in kwargs})

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        adapter_name: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload the files that `save_pretrained` writes, in one commit. The repository is created if missing.

        Args:
            repo_id: `user/name`.
            commit_message, commit_description: message and description of the commit.
            private: whether a new repository is private.
            token: Hub token; default: that of `hf auth login` or HF_TOKEN.
            revision: branch, created if missing; default: main.
            create_pr: open a pull request instead of committing to the branch.
            adapter_name: the adapter to upload; default: the active one.
            kwargs: other keyword arguments of transformers' `push_to_hub`, ignored.

        Raises:
            TypeError: an unknown keyword argument.
            ValueError: `repo_id` is invalid, or a backbone is a local folder, which others could not load.
            PermissionError: the Hub rejects the token.
            OSError: the upload failed for another reason. This message and that of a PermissionError contain the
                folder with the weights and the command that pushes them again.
        """
        _check_keywords("push_to_hub", kwargs)
        return push_model(
            self,
            repo_id,
            adapter_name=adapter_name,
            token=token,
            private=private,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def _check_keywords(method: str, kwargs: dict[str, Any], known: tuple[str, ...] = ()) -> None:
    unknown = sorted(kwargs.keys() - {*known, *_IGNORED_KEYWORDS})
    if unknown:
        raise TypeError(
            f"{method} got unexpected keyword arguments: {', '.join(unknown)}; see its documentation for those that "
            "it takes (adapter_name=... selects the adapter)."
        )
