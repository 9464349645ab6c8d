"""Image data and its task: splits, transforms, caching, and what is said of images that do not decode."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import SHARED
from neat_bench.config import build, compose
from neat_bench.data.images import NORMALIZATIONS, ImageClassification
from neat_bench.data.packaged_images import draw_sprite
from neat_bench.errors import InputError
from neat_bench.experiment import run
from neat_bench.tasks import make_task


def png(value, size=(20, 12)):
    out = io.BytesIO()
    Image.new("RGB", size, value).save(out, format="PNG")
    return out.getvalue()


def write(tmp_path, images, labels=(0, 1, 0, 1), **options):
    for split in ("train", "validation", "test"):
        frame = pd.DataFrame({"image": [{"bytes": image, "path": None} for image in images], "label": labels})
        frame.to_parquet(tmp_path / f"{split}.parquet")
    files = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "validation", "test")}
    defaults = {"name": "own/colours", "classes": ["dark", "light"], "files": files, "image_size": 16}
    return ImageClassification(**({"test_split": "test"} | defaults | options))


def task_of(spec, tmp_path):
    data = spec.load(tmp_path, None, None)
    return make_task(spec, data), data


COLOURS = [png((0, 0, 0)), png((255, 255, 255)), png((10, 0, 0)), png((250, 255, 255))]


def test_the_validation_split_selects_and_the_test_split_reports(tmp_path):
    data = write(tmp_path, COLOURS).load(tmp_path, None, None)
    assert (len(data.train), len(data.evaluation)) == (4, 8)
    assert data.selects.tolist() == [True] * 4 + [False] * 4
    assert data.evaluation["id"][:] == list(range(8))
    assert [origin.split for origin in data.provenance] == ["train", "validation", "test"]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_batches_hold_normalised_pixels(tmp_path, normalization):
    task, data = task_of(write(tmp_path, COLOURS, normalization=normalization), tmp_path)
    rows = task.encode(data.train, tmp_path / "cache", training=True)
    batch = task.collator(training=True)([rows[0], rows[1]])
    mean, std = (np.array(values) for values in NORMALIZATIONS[normalization])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    np.testing.assert_allclose(batch["pixel_values"][0, :, 5, 5], (0 - mean) / std, rtol=1e-5)
    np.testing.assert_allclose(batch["pixel_values"][1, :, 5, 5], (1 - mean) / std, rtol=1e-5)
    assert batch["labels"].tolist() == [0, 1]


def test_crop_keeps_the_shape_of_things_and_squash_keeps_all_of_them(tmp_path):
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, :16] = 255  # the left third is white
    out = io.BytesIO()
    Image.fromarray(wide).save(out, format="PNG")
    white = {}
    for resize in ("crop", "squash"):
        task, _ = task_of(write(tmp_path, [out.getvalue()] * 4, resize=resize), tmp_path)
        pixels = np.asarray(task.resize(task.decode(out.getvalue(), "")))
        assert pixels.shape == (16, 16, 3)
        white[resize] = (pixels > 128).mean()
    assert white["crop"] < 0.02
    assert white["squash"] == pytest.approx(1 / 3, abs=0.05)


def test_augmentation_is_of_training_images_only_and_follows_the_draw(tmp_path):
    rng = np.random.default_rng(0)
    images = [png((0, 0, 0))] * 3
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(out, format="PNG")
    task, data = task_of(write(tmp_path, [*images, out.getvalue()], augmentation="crop_flip"), tmp_path)
    training = task.encode(data.train, tmp_path / "cache", training=True)
    fixed = task.encode(data.evaluation, tmp_path / "cache", training=False)
    collate = task.collator(training=True)

    def batch(rows, epoch):
        return collate([rows[3] | {"draw": (0, epoch)}])["pixel_values"]

    assert torch.equal(batch(training, 0), batch(training, 0))
    assert not torch.equal(batch(training, 0), batch(training, 1))
    assert torch.equal(batch(fixed, 0), batch(fixed, 1))


def test_resized_images_are_cached_by_content(tmp_path):
    task, data = task_of(write(tmp_path, COLOURS), tmp_path)
    task.encode(data.train, tmp_path / "cache", training=True)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    task.encode(data.train, tmp_path / "cache", training=False)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == files


def test_an_image_that_does_not_decode_is_named_with_its_row(tmp_path):
    for augmentation in ("none", "crop_flip"):
        broken = [*COLOURS[:2], COLOURS[2][:40], COLOURS[3]]
        task, data = task_of(write(tmp_path, broken, augmentation=augmentation), tmp_path)
        with pytest.raises(InputError, match="own/colours, split train, row 2: the image does not decode"):
            task.collator(training=True)([*task.encode(data.train, tmp_path / "cache", training=True)])


def test_a_column_without_image_bytes_is_named(tmp_path):
    spec = write(tmp_path, COLOURS)
    frame = pd.DataFrame({"image": ["a.png"] * 4, "label": [0, 1, 0, 1]})
    frame.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(InputError, match="row 0: image holds no image bytes"):
        spec.load(tmp_path, None, None)


@pytest.mark.parametrize(("options", "message"), [
    ({"normalization": "imagnet"}, "did you mean 'imagenet'"), ({"resize": "squish"}, "did you mean 'squash'"),
    ({"augmentation": "flip"}, "dataset.augmentation 'flip'"), ({"image_size": 4}, "at least 8"),
    ({"classes": None}, r"names\) or dataset.num_classes"),
])  # fmt: skip
def test_bad_descriptions_are_named(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path, COLOURS, **options)


@pytest.mark.parametrize(("name", "sizes", "classes"), [
    ("digits", (800, 200, 797), 10), ("mnist5k", (800, 200, 1000), 10),
    ("dsprites_location", (800, 200, 1000), 16), ("dsprites_orientation", (800, 200, 1000), 16),
])  # fmt: skip
def test_packaged_sets_have_their_splits_and_no_image_twice(tmp_path, name, sizes, classes):
    data = build(compose([f"dataset=packaged/{name}"])).dataset.load(tmp_path, None, None)
    assert (len(data.train), int(data.selects.sum()), int((~data.selects).sum())) == sizes
    assert set(data.train["label"]) == set(range(classes)) == set(range(len(data.classes)))
    images = set(data.train["image"]), set(data.evaluation["image"])
    # a square, or a sprite at another turn, can give the same pixels from other factors
    assert len(images[0] & images[1]) <= (20 if name.startswith("dsprites") else 0)


def test_sprites_show_their_factors():
    def centre(image):
        rows, columns = np.nonzero(image)
        return columns.mean(), rows.mean()

    for shape in range(3):
        assert draw_sprite(shape, 5, 0, 31, 0).any()
        left, right = (centre(draw_sprite(shape, 5, 7, x, 10))[0] for x in (0, 31))
        assert 35 < right - left < 45
        areas = [draw_sprite(shape, scale, 3, 16, 16).sum() for scale in range(6)]
        assert areas == sorted(areas)
        assert areas[5] == pytest.approx(4 * areas[0], rel=0.25)
        edges = draw_sprite(shape, 5, 11, 0, 31)
        assert not edges[:, 0].any()
        assert not edges[-1].any()
    assert not np.array_equal(draw_sprite(1, 5, 0, 16, 16), draw_sprite(1, 5, 10, 16, 16))


def test_an_image_run_learns_and_reports_on_the_test_split(tmp_path):
    """A tiny ViT from a local folder on two colours; the record counts the test items only."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path / "vit")
    write(tmp_path, COLOURS * 4, labels=[0, 1, 0, 1] * 4)
    files = ",".join(f"{split}:{tmp_path}/{split}.parquet" for split in ("train", "validation", "test"))
    folders = [f"paths.{name}={tmp_path}/{name}" for name in ("results", "cache", "logs")]
    config = build(compose([
        "dataset=packaged/digits", "dataset._target_=neat_bench.data.images.ImageClassification",
        "~dataset.test_items", "dataset.name=own/colours", "dataset.classes=[dark,light]", "dataset.image_size=16",
        f"dataset.files={{{files}}}", "model=vit_base_in21k", f"model.path={tmp_path}/vit", "method=full",
        "optimizer.lr=3e-3", "trainer.batch_size=8", "trainer.epochs=6", "trainer.device=cpu", "logger=none", *folders,
    ]))  # fmt: skip
    record = run(config, [])
    assert record["results"]["split_validation"]["accuracy"] == 1.0
    assert record["protocol"] == {"reported": "split_validation", "selection_items": 16, "report_items": 16}
    assert record["cost"]["training_flops_estimate"] > 0
    assert record["config"]["dataset"]["normalization"] == "half"
    items = pd.read_parquet(next((tmp_path / "results").rglob("*.items.parquet")))
    assert (items.part == "report").sum() == (items.part == "selection").sum()


@pytest.mark.parametrize("name", ["cifar10", "eurosat", "oxford_iiit_pet", "caltech101"])
def test_real_photographs_load_under_their_configs(name, tmp_path):
    folder = SHARED / "vision" / name
    if not folder.exists():
        pytest.skip("the real photographs are not on this machine")
    spec = build(compose([f"dataset=vision/{name}"])).dataset
    data = spec.load(SHARED, 40, 40)
    assert (len(data.train), len(data.evaluation)) == (40, 80)
    assert spec.classes == json.loads((folder / "classes.json").read_text())
    task = make_task(spec, data)
    rows = task.encode(data.evaluation.select(range(4)), tmp_path, training=False)
    assert task.collator(training=True)([*rows])["pixel_values"].shape == (4, 3, 224, 224)


def test_a_share_of_the_training_split_is_held_out_for_the_papers_sets():
    for name in (
        "stanford_cars",
        "cifar100",
        "dtd",
        "fgvc_aircraft",
        "resisc45",
        "cifar10",
        "eurosat",
        "oxford_iiit_pet",
    ):
        config = build(compose([f"dataset=vision/{name}"]))
        spec = config.dataset
        assert (spec.evaluation_split, spec.holdout, spec.test_split) == (None, 0.1, "test")
        assert (spec.normalization, spec.augmentation, spec.resize) == ("half", "crop_flip", "crop")
        assert config.model.name == "vit_base_in21k"
        assert spec.hub is not None
    assert len(build(compose(["dataset=vision/stanford_cars"])).dataset.class_names()) == 196


def test_a_data_set_takes_the_normalization_of_its_model():
    for model, normalization in (("dinov2_s", "imagenet"), ("efficientnet_lite0", "lite"), ("vit_base_in21k", "half")):
        overrides = ["dataset=packaged/digits", f"model={model}"]
        assert build(compose(overrides)).dataset.normalization == normalization
        assert build(compose([*overrides, "dataset.normalization=half"])).dataset.normalization == "half"


def test_workers_draw_what_one_process_draws_and_leave_the_generator_alone(tmp_path):
    from torch.utils.data import DataLoader

    from neat_bench.training.batches import SeededRows

    rng = np.random.default_rng(0)
    images = []
    for _ in range(8):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(out, format="PNG")
        images.append(out.getvalue())
    task, data = task_of(write(tmp_path, images, labels=[0, 1] * 4, augmentation="crop_flip"), tmp_path)
    rows = SeededRows(task.encode(data.train, tmp_path / "cache", training=True), seed=5)

    def epoch(number, **options):
        rows.epoch = number
        loader = DataLoader(rows, batch_size=4, collate_fn=task.collator(training=True), **options)
        return torch.cat([batch["pixel_values"] for batch in loader])

    torch.manual_seed(0)
    task.collator(training=True)(rows.__getitems__([0, 1]))
    drawn_after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn_after, torch.rand(1))
    first = epoch(0)
    assert torch.equal(first, epoch(0, num_workers=2, multiprocessing_context="fork"))
    assert not torch.equal(first, epoch(1))
    shuffled = DataLoader(rows, sampler=[7, 2], collate_fn=task.collator(training=True), batch_size=2)
    rows.epoch = 0
    assert torch.equal(next(iter(shuffled))["pixel_values"], first[[7, 2]])
