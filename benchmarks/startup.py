"""Time that the package takes until its first use, relative to the libraries that it is used with.

    python benchmarks/startup.py

Each line is a new process. The lines take turns, and the medians are printed, also relative to the first line of the
group. Bytecode is cached before the first measurement. Aim: the first use takes at most 1.1 times as long as the first
line of its group.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from measure import ROOT, machine, print_table

_HELP = "import sys; sys.argv[1:] = {!r}; from detris_peft.cli import main; main()"
_TINY = (
    "from transformers import Dinov2Config, Dinov2Model; "
    "model = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28)); "
)
_ENCODERS = "from transformers import Dinov2WithRegistersModel, CLIPTextModelWithProjection"
GROUPS = {
    "a user of peft": {
        "import peft": "import peft",
        "import detris_peft": "import detris_peft",
        "first use: a config": "from detris_peft import DenseAlignerConfig; DenseAlignerConfig(dim=32)",
    },
    "a user of peft with a tiny encoder": {
        "LoRA": f"from peft import LoraConfig, get_peft_model; {_TINY}"
        "get_peft_model(model, LoraConfig(target_modules=['q_proj', 'query']))",
        "Dense Aligners": f"from detris_peft import DenseAlignerConfig; from peft import get_peft_model; {_TINY}"
        "get_peft_model(model, DenseAlignerConfig(dim=16, layers_to_transform=[1], text_dim=32, "
        "cross_attention_dim=16, cross_attention_heads=2))",
    },
    "a user of the model": {
        "import peft; encoders of transformers": f"import peft; {_ENCODERS}",
        "first use: the model class": f"from detris_peft import DetrisForReferringSegmentation; {_ENCODERS}",
        "predictor": "from detris_peft import DetrisPredictor",
    },
    "the command line": {
        "python -c pass": "pass",
        "detris --help": _HELP.format(["--help"]),
        "detris predict --help": _HELP.format(["predict", "--help"]),
        "detris train --help": _HELP.format(["train", "--help"]),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="processes per line")
    arguments = parser.parse_args()
    print(f"{machine('cpu')}\n")
    table = []
    for group, lines in GROUPS.items():
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in lines}
        for repeat in range(arguments.repeats + 1):
            for name, code in lines.items():
                measured = run(code)
                if repeat:  # the first one writes the bytecode
                    times[name].append(measured)
        reference = None
        for name, values in times.items():
            wall, processor = (statistics.median(column) for column in zip(*values, strict=True))
            reference = reference or processor
            table.append((group, f"`{name}`" if "import" in name else name, wall, processor, processor / reference))
    print_table(("", "", "s", "processor s", "ratio of processor s"), table)


def run(code: str) -> tuple[float, float]:
    """Run code in a new process; return its wall time and processor time in seconds.

    Raises:
        SystemExit: the code failed; its output is printed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    completed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tempfile.gettempdir()
    )
    wall = time.perf_counter() - start
    if completed.returncode:
        raise SystemExit(f"{completed.stderr}\n{code!r}: expected exit status 0, got {completed.returncode}.")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
