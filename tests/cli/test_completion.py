"""`detris completion`: the script of bash completes commands, options, choices and files."""

import re
import shutil
import subprocess

import pytest

from detris_peft.cli import COMMANDS, main
from detris_peft.cli.data import DESCRIPTIONS

COMPLETE = """
source "$1"
COMP_WORDS=("${@:2}")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_shtab_detris detris "${COMP_WORDS[COMP_CWORD]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def complete(tmp_path, capsys):
    """Return a function that returns what bash offers for the last of some words."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    main(["completion", "bash"])
    script = tmp_path / "detris.bash"
    script.write_text(capsys.readouterr().out)

    def offered(*words):
        command = ["bash", "-c", COMPLETE, "bash", script, "detris", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    return offered


def test_bash_completes_commands_options_choices_and_files(complete, tmp_path):
    assert complete("comp") == ["compare", "completion"]
    assert complete("data", "de") == ["describe"]
    assert "--image" in complete("predict", "--im")
    assert complete("train", "--batch") == ["--batch_size"]  # in one spelling
    assert complete("train", "--vision_adapter.d") == ["--vision_adapter.dim"]
    assert complete("evaluate", "--sentences", "") == ["first", "all"]
    (tmp_path / "image.png").touch()
    assert complete("predict", "--image", f"{tmp_path}/im") == [f"{tmp_path}/image.png"]


def test_scripts_of_other_shells_list_all_commands(capsys):
    for shell in ("zsh", "tcsh"):
        main(["completion", shell])
        assert {*COMMANDS, *DESCRIPTIONS, "batch_size", "onnx"} <= {*re.findall(r"\w+", capsys.readouterr().out)}
