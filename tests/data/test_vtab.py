"""VTAB-1k: its nineteen configs, its label rules, and the converter of the usual archives."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image

from neat_bench.config import CONFIGS, build, compose
from neat_bench.data.image_archives import VTAB_LISTS, convert, from_class_folders, from_lists
from neat_bench.data.images import ImageClassification
from neat_bench.data.vtab import apply_rule
from neat_bench.errors import InputError
from neat_bench.files import sha256_of_file

# the published numbers of classes (arXiv 1910.04867, table 2)
CLASSES = {
    "cifar100": 100, "caltech101": 102, "dtd": 47, "oxford_flowers102": 102, "oxford_iiit_pet": 37, "svhn": 10,
    "sun397": 397, "patch_camelyon": 2, "eurosat": 10, "resisc45": 45, "diabetic_retinopathy": 5, "clevr_count": 8,
    "clevr_dist": 6, "dmlab": 6, "kitti": 4, "dsprites_loc": 16, "dsprites_ori": 16, "smallnorb_azi": 18,
    "smallnorb_ele": 9,
}  # fmt: skip


def test_the_nineteen_tasks_have_their_classes_and_their_columns():
    table = OmegaConf.load(CONFIGS / "table" / "vtab1k.yaml")
    assert list(table.columns) == list(CLASSES)
    assert [len(tasks) for tasks in table.groups.values()] == [7, 4, 8]
    for task, classes in CLASSES.items():
        spec = build(compose([f"dataset=vtab1k/{task}"])).dataset
        assert (spec.num_classes, spec.resize, spec.normalization, spec.augmentation) == (
            classes, "squash", "imagenet", "none")  # fmt: skip
        assert (spec.evaluation_split, spec.test_split) == ("validation", "test")
        assert spec.label_name == table.columns[task]


@pytest.mark.parametrize(("rule", "raw", "label"), [
    ("clevr_count", 3, 0), ("clevr_count", 10, 7), ("clevr_count", [{}] * 5, 2),
    ("clevr_distance", [12.0, 7.9], 0), ("clevr_distance", [8.0], 0), ("clevr_distance", [8.01, 30], 1),
    ("clevr_distance", 8.7, 2), ("clevr_distance", [9.2], 3), ("clevr_distance", [9.6], 4), ("clevr_distance", 10.5, 5),
    ("kitti_distance", [{"type": "Car", "z": 7.5}], 0), ("kitti_distance", [{"type": 1, "z": 8.5}], 1),
    ("kitti_distance", [{"type": "Truck", "z": 40.0}, {"type": "Pedestrian", "z": 2.0}], 2),
    ("kitti_distance", [{"type": "Cyclist", "z": 3.0}], 3), ("kitti_distance", [], 3),
    ("kitti_distance", [{"type": 0, "z": -1.0}], 0),
    ("dsprites_location", 0, 0), ("dsprites_location", 1, 0), ("dsprites_location", 31, 15),
    ("dsprites_orientation", 0, 0), ("dsprites_orientation", 2, 0), ("dsprites_orientation", 3, 1),
    ("dsprites_orientation", 39, 15),
])  # fmt: skip
def test_raw_annotations_become_vtabs_classes(rule, raw, label):
    assert apply_rule(rule, raw, "here") == label


@pytest.mark.parametrize(("rule", "raw"), [
    ("clevr_count", 3.5), ("clevr_distance", []), ("clevr_distance", "near"), ("kitti_distance", [{"z": 1.0}]),
    ("dsprites_location", 32), ("dsprites_orientation", -1),
])  # fmt: skip
def test_annotations_that_are_none_are_named(rule, raw):
    with pytest.raises(InputError, match=f"row 4.*label_rule={rule}"):
        apply_rule(rule, raw, "row 4")


def test_every_bin_of_the_sprites_is_met():
    assert np.bincount([apply_rule("dsprites_location", x, "") for x in range(32)]).tolist() == [2] * 16
    assert set(np.bincount([apply_rule("dsprites_orientation", o, "") for o in range(40)])) == {2, 3}


def picture(path, value, size=(9, 7)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def listed(tmp_path):
    """A folder as the VTAB-1k archive has it: images and three list files."""
    rows = {"train": 4, "validation": 2, "test": 3}
    for split, name in VTAB_LISTS.items():
        lines = []
        for index in range(rows[split]):
            picture(tmp_path / "clevr" / "images" / split / f"{index:03d} a.png", 20 * index)
            lines.append(f"images/{split}/{index:03d} a.png {index % 3}")
        (tmp_path / "clevr" / name).write_text("\n".join(lines) + "\n\n")
    return tmp_path / "clevr"


def test_list_files_become_parquet_that_a_run_can_read(listed, tmp_path):
    target = tmp_path / "data" / "vtab1k" / "clevr_count"
    checksums = convert(from_lists(listed, VTAB_LISTS), target)
    assert {name: facts["rows"] for name, facts in checksums.items()} == {
        "train.parquet": 4, "validation.parquet": 2, "test.parquet": 3}  # fmt: skip
    assert json.loads((target / "checksums.json").read_text()) == checksums
    assert all(sha256_of_file(target / name) == facts["sha256"] for name, facts in checksums.items())
    data = build(compose(["dataset=vtab1k/clevr_count"])).dataset.load(tmp_path / "data", None, None)
    assert data.train["label"][:] == [0, 1, 2, 0]
    assert data.train["image"][3] == (listed / "images/train/003 a.png").read_bytes()
    assert (int(data.selects.sum()), len(data.evaluation)) == (2, 5)


def test_a_label_column_of_raw_annotations_is_read_by_the_rule(tmp_path):
    image = tmp_path / "a.png"
    picture(image, 3)
    scenes = [[{"type": "Car", "z": 30.0}], [{"type": "Van", "z": 3.0}], []]
    frame = pd.DataFrame({"image": [image.read_bytes()] * 3, "label": scenes})
    frame.to_parquet(tmp_path / "all.parquet")
    files = {split: str(tmp_path / "all.parquet") for split in ("train", "validation")}
    spec = ImageClassification(name="vtab1k/kitti", num_classes=4, label_rule="kitti_distance", files=files)
    assert spec.load(tmp_path, None, None).train["label"][:] == [2, 0, 3]


def test_class_folders_become_parquet(tmp_path):
    for name in ("zebra", "ant", "train"):  # a class may be called as a split is
        for index in range(10):
            picture(tmp_path / "flat" / name / f"{index}.jpg", index)
    archive = from_class_folders(tmp_path / "flat", test_share=0.2)
    assert archive.classes == ["ant", "train", "zebra"]
    assert {split: np.bincount([label for _, label in rows]).tolist() for split, rows in archive.splits.items()} == {
        "train": [8, 8, 8], "test": [2, 2, 2]}  # fmt: skip
    assert from_class_folders(tmp_path / "flat", test_share=0.2) == archive
    for split in ("train", "val", "test"):
        for name in ("b", "a"):
            picture(tmp_path / "split" / split / name / "1.png", 5)
    archive = from_class_folders(tmp_path / "split")
    assert list(archive.splits) == ["test", "train", "validation"]
    convert(archive, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["a", "b"]
    assert pd.read_parquet(tmp_path / "out" / "validation.parquet").label.tolist() == [0, 1]


def test_what_cannot_be_converted_is_named(listed, tmp_path):
    lines = (listed / "val200.txt").read_text()
    for text, message in (
        ("images/validation/000 a.png two", "line 1: .* is not a path and a label"),
        ("images/validation/9.png 1", "line 1: there is no image"),
        ("images/train/000 a.png 1", "is in the split train as well"),
    ):
        (listed / "val200.txt").write_text(text)
        with pytest.raises(InputError, match=message):
            from_lists(listed, VTAB_LISTS)
    (listed / "val200.txt").write_text(lines)
    broken = listed / "images/test/001 a.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(InputError, match=r"001 a\.png .split test.: the image does not decode"):
        convert(from_lists(listed, VTAB_LISTS), tmp_path / "out")
    assert not (tmp_path / "out" / "test.parquet").exists()
    with pytest.raises(InputError, match="is not a folder"):
        from_class_folders(tmp_path / "nowhere")
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="empty"):
        from_class_folders(tmp_path / "empty")


def test_the_converters_command_line(listed, tmp_path):
    script = Path(__file__).resolve().parents[2] / "scripts" / "convert_images.py"
    command = [sys.executable, str(script), "lists", str(listed), str(tmp_path / "out")]
    assert "train.parquet: 4 rows, sha256" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    failed = subprocess.run([*command, "train=none.txt"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "none.txt does not exist" in failed.stderr
    assert "Traceback" not in failed.stderr
