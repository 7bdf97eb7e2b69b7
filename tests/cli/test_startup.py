"""The command line starts without the libraries that take seconds to import."""

import json
import subprocess
import sys
from importlib import import_module

import pytest

from detris_peft.cli import COMMANDS
from detris_peft.cli.config_options import ADAPTERS, config_option_types
from detris_peft.cli.data import DESCRIPTIONS
from detris_peft.cli.declared_fields import declared_types, described_fields
from detris_peft.modeling import DetrisConfig
from detris_peft.modeling.adapter_configs import DEFAULT_TYPES, own_fields

HEAVY = ["torch", "transformers", "peft", "datasets", "accelerate", "numpy", "PIL", "cv2", "huggingface_hub", "gradio"]
# Prints, for each command line, how it ends, and the heavy modules that are imported then.
RUN = """
import contextlib, io, json, sys
from detris_peft.cli import main

results = []
for line in json.loads(sys.argv[1]):
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main(line)
            code = 0
        except SystemExit as end:
            code = end.code
    results.append([line, code, output.getvalue(), [name for name in json.loads(sys.argv[2]) if name in sys.modules]])
print(json.dumps(results))
"""
LINES = {
    ("--help",): 0,
    ("--version",): 0,
    (): 2,
    ("unknown",): 2,
    **{(name, "--help"): 0 for name in COMMANDS},
    **{("data", name, "--help"): 0 for name in DESCRIPTIONS},
    **{(name, "--unknown_option", "x"): 2 for name in COMMANDS if name != "data"},
    **{("data", name, "--unknown_option", "x"): 2 for name in DESCRIPTIONS},
    ("completion", "bash"): 0,
}


@pytest.fixture(scope="module")
def light_runs():
    """Run all command lines in one process."""
    lines = json.dumps([[*line] for line in LINES])
    done = subprocess.run(
        [sys.executable, "-c", RUN, lines, json.dumps(HEAVY)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {tuple(line): (code, output, heavy) for line, code, output, heavy in json.loads(done.stdout)}


def test_help_and_usage_errors_import_no_heavy_library(light_runs):
    assert {line: code for line, (code, _, _) in light_runs.items()} == LINES
    assert {line: heavy for line, (_, _, heavy) in light_runs.items() if heavy} == {}


def test_usage_errors_are_one_line_and_help_names_the_command(light_runs):
    for line, (code, output, _) in light_runs.items():
        if code == 2:
            assert output.count("\n") == 1, line
            assert output.startswith("error: "), line
        elif line[-1:] == ("--help",):
            assert output.startswith(f"usage: detris {' '.join(line[:-1])}".rstrip()), line


def test_options_of_the_model_are_those_that_its_config_declares():
    """They are read from the source of the classes, which are not imported."""
    declared = {name for name in DetrisConfig.__annotations__ if name not in ("model_type", "sub_configs")}
    adapters = {
        f"{name}.{field}": kind for name, cls in DEFAULT_TYPES.items() for field, kind in own_fields(cls).items()
    }
    types = config_option_types()
    assert set(types) == declared | set(adapters)
    assert {name: types[name] for name in adapters} == adapters
    assert {name: types[name] for name in ("dropout", "extract_layers", "position_interpolation")} == {
        name: DetrisConfig.__annotations__[name] for name in ("dropout", "extract_layers", "position_interpolation")
    }
    for name, cls in DEFAULT_TYPES.items():
        assert [source for _, source in ADAPTERS[name]] == [
            base.__name__ for base in reversed(cls.__mro__) if base.__module__.startswith("detris_peft.")
        ]
        assert described_fields(*ADAPTERS[name]).keys() >= declared_types(*ADAPTERS[name]).keys()


@pytest.mark.parametrize(
    "package",
    ["", ".data", ".data.tools.describe", ".comparison", ".presets", ".safe_loading", ".training"],
)
def test_lazy_names_of_a_package_are_its_public_names(package):
    module = import_module(f"detris_peft{package}")
    assert set(module.__all__) <= {*dir(module)}
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'unknown'"):
        _ = module.unknown


def test_modules_run_as_programs():
    for module in ("detris_peft", "detris_peft.cli"):
        done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("detris-peft ")
