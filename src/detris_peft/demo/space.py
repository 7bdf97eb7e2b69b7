"""A folder that runs the page as a Space on the Hugging Face Hub."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from ..atomic import atomic_write_dir, write_json
from ..manifest import update_manifest
from ..modeling.checkpoint.files import CHECKPOINT_FILES, PROCESSOR_FILES
from ..modeling.checkpoint.loading import check_complete, read_config
from ..modeling.training_results import is_hub_name
from ..outputs import check_output_folder, mark_folder
from ..safe_loading.text_files import read_json
from .gradio_version import REQUIRED, gradio_version
from .limits import DemoLimits
from .sources import METADATA, CheckpointSource, read_examples

PACKAGE = "detris-peft"
_FOLDERS = ("checkpoint", "compare")
_BACKBONES = ("vision", "text")


def write_space(
    folder: str | Path,
    sources: Sequence[CheckpointSource],
    examples: str | Path | None = None,
    limits: DemoLimits | None = None,
    overwrite: bool = False,
) -> None:
    """Write the folder of a Space: `app.py`, `README.md`, `requirements.txt`, a copy of this package, and checkpoints.

    Local checkpoints are copied with their local backbones. Checkpoints and backbones of the Hub are downloaded when
    the Space starts.

    Args:
        folder: the folder to write; it is complete, or not written at all.
        sources: one checkpoint, or two to compare.
        examples: folder of example images.
        limits: what visitors may send.
        overwrite: replace an existing Space folder.

    Raises:
        OSError, ValueError, ImportError: the folder must not be written, a checkpoint is incomplete, or Gradio is not
            installed.
    """
    check_output_folder(folder, overwrite, option="--export_space", kind="space")
    version, requirements = gradio_version(), _requirements()
    chosen = read_examples(examples) if examples is not None else []
    with atomic_write_dir(Path(folder)) as staging:
        models: list[str] = []
        placed = []
        for source, name in zip(sources, _FOLDERS, strict=False):
            if source.is_local:
                models += _copy_checkpoint(Path(source.name, source.subfolder), staging / name)
                source = replace(source, name=name, subfolder="", given_title=source.title)
            else:
                models.append(source.name)
            placed.append(source)
        if chosen:
            (staging / "examples").mkdir()
            for file, _ in chosen:
                shutil.copyfile(file, staging / "examples" / file.name)
            if (Path(str(examples)) / METADATA).is_file():
                shutil.copyfile(Path(str(examples)) / METADATA, staging / "examples" / METADATA)
        (staging / "app.py").write_text(_app(placed, bool(chosen), limits or DemoLimits()), encoding="utf-8")
        (staging / "README.md").write_text(_readme(sources, models, version), encoding="utf-8")
        (staging / "requirements.txt").write_text(requirements, encoding="utf-8")
        _copy_package(staging)
        mark_folder(staging, "space")


def _copy_checkpoint(folder: Path, target: Path) -> list[str]:
    """Copy a checkpoint with its local backbones; return the Hub ids of its other backbones."""
    config = read_config(folder)
    check_complete(folder, config)
    for name in (*CHECKPOINT_FILES, *PROCESSOR_FILES):
        if (folder / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target / name)
    if config.train_backbones:
        return []
    content, on_hub = read_json(target / "config.json"), []
    for kind in _BACKBONES:
        name = getattr(config, f"{kind}_name_or_path")
        if not name:
            continue
        local = folder / name  # an absolute path replaces the folder
        if is_hub_name(name) and not local.is_dir():
            on_hub.append(name)
            continue
        if not local.is_dir():
            raise FileNotFoundError(f"{folder}: expected the {kind} backbone {name}, found no such folder; copy it.")
        shutil.copytree(local, target / "backbones" / kind)
        content[f"{kind}_name_or_path"] = f"./backbones/{kind}"
    write_json(target / "config.json", content)
    update_manifest(target, "config.json")
    return on_hub


def _copy_package(folder: Path) -> None:
    """Copy this package, because there is no release that a Space could install."""
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    if text := importlib.metadata.distribution(PACKAGE).read_text("licenses/LICENSE"):
        (folder / "LICENSE").write_text(text, encoding="utf-8")


def _requirements() -> str:
    """Return the package's own requirements, and Gradio."""
    try:
        names = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"--export_space: expected {PACKAGE} to be installed, to know what it needs; run: pip install ."
        ) from None
    needed = [name for name in names if not re.search(r";.*\bextra\b", name)]
    return "\n".join(sorted([*needed, REQUIRED])) + "\n"


def _app(sources: Sequence[CheckpointSource], has_examples: bool, limits: DemoLimits) -> str:
    checkpoints = "".join(f"    {_source_code(source)},\n" for source in sources)
    options = ", ".join(f"{name}={value}" for name, value in asdict(limits).items())
    examples = 'HERE / "examples"' if has_examples else "None"
    return f'''"""A page that segments by sentence; see README.md. Written by `detris demo --export_space`."""

from pathlib import Path

from detris_peft.demo.limits import DemoLimits
from detris_peft.demo.server import launch_options, load_page
from detris_peft.demo.sources import CheckpointSource

HERE = Path(__file__).resolve().parent
LIMITS = DemoLimits({options})
CHECKPOINTS = [
{checkpoints}]

demo = load_page(CHECKPOINTS, {examples}, LIMITS)

if __name__ == "__main__":
    demo.launch(**launch_options(LIMITS))
'''


def _source_code(source: CheckpointSource) -> str:
    name = f"str(HERE / {source.name!r})" if source.name in _FOLDERS else repr(source.name)
    others = {"revision": source.revision, "subfolder": source.subfolder, "given_title": source.given_title}
    return f"CheckpointSource({', '.join([name, *(f'{k}={v!r}' for k, v in others.items() if v)])})"


def _readme(sources: Sequence[CheckpointSource], models: Sequence[str], version: str) -> str:
    header = {
        "title": "Segment by sentence",
        "emoji": "\N{DIRECT HIT}",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": version,
        "app_file": "app.py",
        "models": sorted(set(models)),
        "license": "apache-2.0",
        "short_description": "Masks of the objects that sentences describe",
    }
    release = importlib.metadata.version(PACKAGE)
    front = yaml.safe_dump({k: v for k, v in header.items() if v}, sort_keys=False, allow_unicode=True)
    titles = " and ".join(f"`{source.title}`" for source in sources)
    return f"""---
{front}---

# Segment by sentence

A page that segments what sentences refer to in an image, with {titles}. Written by `detris demo --export_space` of
detris-peft {release}.

- `app.py` is the page; its limits for visitors are at the top.
- `detris_peft/` is a copy of the package, because it has no release on PyPI. Its license is Apache-2.0 (`LICENSE`).
  Once there is a release, the folder can be replaced by a line `detris-peft=={release}` in `requirements.txt`.
- `license` above is that of the page and the package. The weights have their own licenses: see the model card of the
  checkpoint, and those of its backbones.
- Try it on your machine: `pip install -r requirements.txt`, then `python app.py`.
- Publish it: `hf repos create USER/NAME --repo-type space --space-sdk gradio`, then
  `hf upload USER/NAME . --repo-type space` in this folder.
"""
