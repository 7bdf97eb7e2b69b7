"""`detris data convert`: convert a dataset to parquet."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...data.errors import BadRows
from ...data.sources import DataSource
from ...errors import one_line
from ...outputs import MARKER
from .output import check_splits, list_bad_rows, stop_on_sigterm


@dataclass
class ConvertArguments:
    """Options of `detris data convert`."""

    output: str = field(metadata={"help": "output folder"})
    splits: list[str] | None = field(default=None, metadata={"help": "splits to process; by default all"})
    max_shard_size: str = field(default="500MB", metadata={"help": "maximum size of a parquet file, in KB, MB or GB"})
    skip_bad_rows: bool = field(
        default=False, metadata={"help": "skip and list invalid rows; default: stop at the first one"}
    )
    push_to_hub: str | None = field(default=None, metadata={"help": "upload the output as this dataset: user/name"})
    private: bool = field(default=False, metadata={"help": "with --push_to_hub: create the dataset as private"})
    overwrite: bool = field(default=False, metadata={"help": "replace the files of an earlier conversion in --output"})
    allow_outside: bool = field(
        default=False,
        metadata={
            "help": "also copy images and masks that are not in the dataset's folder (.., absolute names, links)"
        },
    )

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError("--output: expected a folder, got an empty name; pass a name.")
        if self.private and not self.push_to_hub:
            raise ValueError("--private: expected --push_to_hub as well, got none; add it, or omit --private.")
        check_splits(self.splits)


def convert(options: ConvertArguments, source: DataSource) -> None:
    """Run `detris data convert`: write parquet files, and upload them on request."""
    from ...data.tools.convert import write_parquet

    if options.push_to_hub:  # fail early
        from ...modeling.hub import check_hub_access

        check_hub_access(options.push_to_hub)
    bad_rows = BadRows() if options.skip_bad_rows else None
    with stop_on_sigterm():
        counts = write_parquet(
            source,
            options.output,
            options.splits,
            max_shard_size=options.max_shard_size,
            bad_rows=bad_rows,
            overwrite=options.overwrite,
            allow_outside=options.allow_outside,
        )
    rows = ", ".join(f"{split} {count:,} rows" for split, count in counts.items())
    print(f"wrote {options.output}: {rows}")
    if bad_rows:
        print(list_bad_rows(bad_rows))
    if options.push_to_hub:
        _push(options.push_to_hub, options)


def _push(name: str, options: ConvertArguments) -> None:
    """Upload the output folder; delete remote shards of earlier conversions."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=options.private, exist_ok=True)
        # Large uploads are split into several commits; running an interrupted upload again resumes it.
        url = api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=options.output,
            delete_patterns="data/*.parquet",
            ignore_patterns=MARKER,
            commit_message="Written by detris data convert",
        )
    except (OSError, HfHubHTTPError, ValueError) as error:
        reason = one_line(error, first_line=True)
        raise OSError(
            f"{name}: the upload failed ({reason}); {options.output} is complete, resume with "
            f"`hf upload {name} {options.output} --repo-type dataset`"
        ) from None
    print(f"uploaded {name}: {url}")
