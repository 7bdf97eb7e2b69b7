"""`detris train` with the bad rows that `detris data check` finds: refused in one line, or skipped and listed."""

from __future__ import annotations

import json
import pickle
import re
import shutil

import pytest
from PIL import Image

from detris_peft import DetrisForReferringSegmentation
from detris_peft.cli.train import main
from detris_peft.data import BadRowError
from detris_peft.data.refshapes import write_refshapes
from tests.helpers import toy_run

SIDE = 224
FAR = [[x + 5 * SIDE for x in (10, 10, 40, 10, 40, 40, 10, 40)]]
SPECK = {"size": [SIDE * 20, SIDE * 20], "counts": [7, 1, (SIDE * 20) ** 2 - 8]}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    root = tmp_path_factory.mktemp("intact")
    write_refshapes(root, train=10, val=2, test=0, image_size=SIDE)
    return root


class Toys:
    """A copy of RefShapes to be damaged. Each fault uses another image or reference."""

    def __init__(self, intact, root):
        self.root = root
        shutil.copytree(intact, root)
        self.refs_file, self.instances_file = root / "refshapes/refs(unc).p", root / "refshapes/instances.json"
        self.references = pickle.loads(self.refs_file.read_bytes())
        self.instances = json.loads(self.instances_file.read_text())
        self.annotations = {one["id"]: one for one in self.instances["annotations"]}
        self.images = {one["id"]: one for one in self.instances["images"]}

    def reference(self, image, number=0):
        """Return one of the two references of the training image with this number."""
        return self.references[2 * image + number]

    def annotation(self, image, number=0):
        return self.annotations[self.reference(image, number)["ann_id"]]

    def image(self, image):
        return self.images[self.reference(image)["image_id"]]

    def file(self, image):
        return self.root / "images/train2014" / self.image(image)["file_name"]

    def write(self):
        self.refs_file.write_bytes(pickle.dumps(self.references, 2))
        self.instances_file.write_text(json.dumps(self.instances))
        return self

    def train(self, *options):
        common = (
            "--preset",
            "tiny",
            "--dataset",
            "refshapes",
            "--epochs",
            "1",
            "--batch_size",
            "6",
            "--drop_last",
            "false",
        )
        paths = ("--data_root", str(self.root), "--output_dir", str(self.root / "run"), "--num_workers", "0")
        main([*common, *paths, *options])


def missing(toys):
    toys.file(0).unlink()
    return "image_missing", [toys.file(0).name], 2


def corrupt(toys):
    toys.file(1).write_bytes(b"no image")
    return "image_damaged", [str(toys.file(1)), "reference"], 2


def truncated(toys):
    data = toys.file(2).read_bytes()
    toys.file(2).write_bytes(data[: len(data) // 2])
    return "image_damaged", [str(toys.file(2)), "reference"], 2


def empty(toys):
    toys.annotation(3)["segmentation"] = [[5.0, 5.0, 5.0, 5.0, 5.0, 5.0]]
    return "mask_empty", [str(toys.instances_file), f"annotation {toys.annotation(3)['id']}:"], 1


def out_of_frame(toys):
    toys.annotation(4)["segmentation"] = FAR
    return "mask_out_of_frame", [str(toys.instances_file), f"annotation {toys.annotation(4)['id']}:"], 1


def wrong_image_size(toys):
    Image.new("RGB", (SIDE // 2, SIDE)).save(toys.file(5))
    return "mask_malformed", [toys.file(5).name, "reference"], 2


def malformed(toys):
    toys.annotation(6)["segmentation"] = [[1.0, 2.0, 3.0]]
    return "mask_malformed", [str(toys.instances_file), f"annotation {toys.annotation(6)['id']}:"], 1


def wrong_run_lengths(toys):
    toys.annotation(6, 1)["segmentation"] = {"size": [SIDE, SIDE], "counts": [5, 5]}
    return "mask_malformed", [str(toys.instances_file), f"annotation {toys.annotation(6, 1)['id']}:"], 1


def duplicate_id(toys):
    toys.reference(7, 1)["ref_id"] = number = toys.reference(7)["ref_id"]
    return "duplicate_id", [str(toys.refs_file), f"reference {number}:"], 1


def blank(toys):
    toys.reference(8)["sentences"][0]["sent"] = " \t"
    return "row_malformed", [str(toys.refs_file), f"reference {toys.reference(8)['ref_id']}:"], 1


def vanishing_mask(toys):
    """A mask of one pixel in an image twenty times as large as the model's."""
    Image.new("RGB", (SIDE * 20, SIDE * 20)).save(toys.file(9), quality=10)
    toys.image(9).update(height=SIDE * 20, width=SIDE * 20)
    for number in (0, 1):
        toys.annotation(9, number)["segmentation"] = SPECK
    return "mask_empty", [toys.file(9).name, "reference", "got 1 pixels of which none remain"], 2


FAULTS = (
    missing,
    corrupt,
    truncated,
    empty,
    out_of_frame,
    wrong_image_size,
    malformed,
    wrong_run_lengths,
    duplicate_id,
    blank,
    vanishing_mask,
)


@pytest.fixture
def labels(monkeypatch):
    """Record the largest label of each training sample."""
    largest = []
    real = DetrisForReferringSegmentation.forward

    def forward(self, pixel_values, input_ids, labels=None, **kwargs):
        if self.training:
            largest.extend(labels.amax((1, 2)).tolist())
        return real(self, pixel_values, input_ids, labels=labels, **kwargs)

    monkeypatch.setattr(DetrisForReferringSegmentation, "forward", forward)
    toy_run.omit_plots(monkeypatch)
    return largest


@pytest.mark.parametrize("damage", FAULTS, ids=lambda damage: damage.__name__)
def test_training_stops_at_a_bad_row_with_one_line_that_names_it(intact, tmp_path, labels, damage):
    toys = Toys(intact, tmp_path / "toys")
    kind, named, _ = damage(toys)
    with pytest.raises(BadRowError) as caught:
        toys.write().train()
    assert caught.value.kind == kind
    message = str(caught.value)
    assert all(name in message for name in named), message
    assert "\n" not in message
    assert all(label > 0 for label in labels)
    assert not (toys.root / "run/last").exists()


def test_skipped_bad_rows_are_listed_and_counted(intact, tmp_path, labels, capsys):
    toys = Toys(intact, tmp_path / "toys")
    faults = [damage(toys) for damage in FAULTS]
    toys.write().train("--skip_bad_rows")
    printed = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(printed) if "invalid rows were skipped" in line)
    listed = printed[start + 1 : -2]  # the last lines are about the best checkpoint
    for kind, named, count in faults:
        found = [line for line in listed if line.startswith(f"  {kind}: ") and all(name in line for name in named)]
        assert len(found) == count, (named, printed)
    assert len(listed) == sum(count for _, _, count in faults)
    assert printed[start] == f"{len(listed)} invalid rows were skipped:"
    # Of 20 references the readers skip 8. The others are visited; a good row replaces each bad one.
    assert len(labels) == 12
    assert min(labels) > 0
    assert (toys.root / "run/last").exists()


def test_bad_validation_rows_are_refused_or_skipped_too(intact, tmp_path, labels, capsys):
    def damaged(name):
        toys = Toys(intact, tmp_path / name)
        file = toys.file(10)
        assert toys.reference(10)["split"] == "val"
        file.write_bytes(b"no image")
        return toys, file

    toys, file = damaged("stops")
    with pytest.raises(BadRowError, match=re.escape(f"{file}: expected an image, got a file that cannot be decoded")):
        toys.train()
    toys, file = damaged("skips")
    toys.train("--skip_bad_rows")
    printed = capsys.readouterr().out
    assert "\n2 invalid rows were skipped:\n  image_damaged: " in printed
    assert [line for line in printed.splitlines() if str(file) in line] == printed.splitlines()[-4:-2]
    assert len(labels) == 2 * 20


def test_images_shared_by_training_and_validation_are_refused(intact, tmp_path, labels):
    toys = Toys(intact, tmp_path / "toys")
    moved = toys.reference(3, 1)
    moved["split"] = "val"
    toys.write()
    name = re.escape(toys.image(3)["file_name"])
    for options in ((), ("--skip_bad_rows",)):  # not an error of one row
        with pytest.raises(ValueError, match=rf"got 1 shared images \({name} is also .*--leak keep\.$"):
            toys.train(*options)
    assert not labels
    toys.train("--leak", "keep")
    assert len(labels) == 19


def test_a_dataset_of_bad_rows_only_is_refused(intact, tmp_path, labels):
    toys = Toys(intact, tmp_path / "toys")
    for image in range(10):
        toys.file(image).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"got 20 invalid rows; fix the first: .*cannot be decoded") as e:
        toys.train("--skip_bad_rows")
    assert "\n" not in str(e.value)
