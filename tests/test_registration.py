"""peft and transformers know our types after `import detris_peft`, in any order of imports, in workers and threads."""

import subprocess
import sys

import pytest
from peft import get_peft_model

from detris_peft import DenseAlignerConfig
from tests.helpers.tiny_models import image_encoder

# A module, because spawned workers import it: what a program sees once it has imported peft and transformers.
CHECKS = '''
def check():
    import peft
    from transformers import AutoConfig, AutoModel, pipelines
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    config = type(AutoConfig.for_model("detris"))
    assert AutoModel._model_mapping[config].__name__ == "DetrisForReferringSegmentation"
    assert PROCESSOR_MAPPING[config].__name__ == "DetrisProcessor"
    assert {cls.__name__ for cls in IMAGE_PROCESSOR_MAPPING[config].values()} == {"DetrisImageProcessor"}
    assert "referring-image-segmentation" in pipelines.PIPELINE_REGISTRY.get_supported_tasks()
    ours = {"DENSE_ALIGNER", "TEXT_ADAPTER", "BOTTLENECK_ADAPTER", "COMPACTER"}
    assert ours <= set(peft.PEFT_TYPE_TO_CONFIG_MAPPING) & set(peft.PEFT_TYPE_TO_TUNER_MAPPING)
    return True


class Images:
    """A dataset that uses the package in the workers of a DataLoader."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        import detris_peft

        detris_peft.DetrisImageProcessor()
        return check()


def light():
    """Return whether neither the libraries nor what needs them is imported."""
    import sys

    return not {"torch", "peft", "transformers", "datasets", "detris_peft.adapters"} & set(sys.modules)
'''


def run(folder, code):
    """Run code in a new process, which can import the module `checks`."""
    (folder / "checks.py").write_text(CHECKS)
    (folder / "main.py").write_text(code)
    command = [sys.executable, "-W", "ignore", "main.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_adapter_is_loaded_by_peft_after_import_detris_peft(tmp_path):
    model = get_peft_model(image_encoder(), DenseAlignerConfig(dim=16, text_dim=8, layers_to_transform=[0]))
    model.save_pretrained(tmp_path / "adapter")
    model.base_model.model.config.save_pretrained(tmp_path / "config")
    code = """
import importlib
from checks import check, light

import detris_peft
importlib.reload(detris_peft)  # as %autoreload of a notebook
assert light() and "DetrisConfig" in dir(detris_peft) and not hasattr(detris_peft, "unknown_name")

cell = {}
exec("from peft import PeftModel; from transformers import AutoConfig, AutoModel", cell)  # as a notebook's cell
model = cell["AutoModel"].from_config(cell["AutoConfig"].from_pretrained("config"))
cell["PeftModel"].from_pretrained(model, "adapter")
check()

import detris_peft.registration
importlib.reload(detris_peft.registration)
importlib.reload(detris_peft)
check()
for name in detris_peft.__all__:
    getattr(detris_peft, name)
"""
    run(tmp_path, code)


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import peft; import detris_peft",
        "import transformers; import detris_peft",
        "import detris_peft; import transformers",
        "import detris_peft; from peft.tuners.lora import LoraConfig",
        "from detris_peft.adapters import DenseAlignerConfig",
        "from detris_peft.modeling.losses import segmentation_loss",
        "from detris_peft import DetrisImageProcessor",
        "import detris_peft.training.trainer",
    ],
)
def test_any_order_of_imports_registers_all_types(tmp_path, code):
    run(tmp_path, f"{code}\nfrom checks import check\ncheck()\n")


@pytest.mark.slow
def test_spawned_workers_register_all_types(tmp_path):
    code = """
import multiprocessing
import detris_peft
from checks import Images, check, light

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(light)  # the worker imports this file, and not more than it does
        assert pool.apply(check)
    from torch.utils.data import DataLoader
    assert [*DataLoader(Images(), batch_size=None, num_workers=1, multiprocessing_context="spawn")] == [True, True]
"""
    run(tmp_path, code)


@pytest.mark.slow
def test_threads_that_import_at_the_same_time_register_all_types(tmp_path):
    code = """
import threading
import detris_peft
from checks import check

failures = []
def run(code):
    try:
        exec(code, {})
    except BaseException as error:
        failures.append(f"{code}: {error!r}")

imports = (
    "import peft",
    "from detris_peft import DetrisPredictor",
    "from detris_peft.adapters import DenseAlignerConfig",
    "import transformers",
    "from detris_peft.modeling import DetrisConfig",
    "from detris_peft import DetrisProcessor",
)
threads = [threading.Thread(target=run, args=(code,)) for code in imports]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures, failures
check()
"""
    run(tmp_path, code)
