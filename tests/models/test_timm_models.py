"""timm models: heads, fused attention, the packaged EfficientNet-Lite0, and batch normalisation under each method."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from conftest import SHARED
from neat_bench.config import build, compose
from neat_bench.errors import InputError
from neat_bench.methods.base import attach, set_training
from neat_bench.methods.state import load_state, save_state, trained_state
from neat_bench.models.roles import find_places, head_names
from neat_bench.tasks import make_task


class Head:
    """What a model must know of a task."""

    auto_class, outputs, reads_text = "AutoModelForImageClassification", 5, False


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def lite0(cache):
    torch.manual_seed(0)
    return build(compose(["model=efficientnet_lite0", "dataset=packaged/digits"])).model.load(Head, cache)[0]


def method(name):
    return build(compose([f"method={name}", "model=efficientnet_lite0", "dataset=packaged/digits"])).method


def test_the_packaged_weights_are_converted_once(lite0, cache):
    folder = next((cache / "models").iterdir())
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert head_names(lite0) == {"classifier.weight", "classifier.bias"}
    assert lite0.classifier.out_features == 5
    assert sum(parameter.numel() for parameter in lite0.parameters()) == 3_377_413
    model = build(compose(["model=efficientnet_lite0", "dataset=packaged/digits"])).model
    assert model.load(Head, cache)[2]["origin"] == "package"
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("override", ["model.dropout=0.1", "model.attn_implementation=eager"])
def test_what_only_transformers_models_take_is_refused(override, cache):
    config = build(compose(["model=efficientnet_lite0", "dataset=packaged/digits", override]))
    with pytest.raises(InputError, match=f"{override.split('=')[0]} is for transformers' models"):
        config.model.load(Head, cache)


def test_the_packaged_weights_see_dogs_and_cats_in_photographs_of_pets(cache):
    if not (SHARED / "vision" / "oxford_iiit_pet").exists():
        pytest.skip("the real photographs are not on this machine")
    config = build(compose(["dataset=vision/oxford_iiit_pet", "model=efficientnet_lite0"]))
    data = config.dataset.load(SHARED, None, None)
    task = make_task(config.dataset, data)
    rows = task.encode(data.evaluation.select(range(60)), cache / "encoded", training=False)

    class ImageNet(Head):
        outputs = 1000

    model = config.model.load(ImageNet, cache)[0].eval()
    with torch.no_grad():
        found = model(task.collator(training=False)([*rows])["pixel_values"]).argmax(dim=1)
    pets = ((found >= 151) & (found <= 268)) | ((found >= 281) & (found <= 285))  # ImageNet's dogs and cats
    assert pets.float().mean() > 0.9


def test_methods_that_need_a_transformer_say_so(lite0):
    with pytest.raises(InputError, match="no map from roles to modules for 'timm:EfficientNet'"):
        attach(method("neat"), lite0)


@pytest.mark.parametrize(("name", "moves"), [("linear_probe", False), ("bitfit", False), ("full", True)])
def test_running_statistics_move_only_where_their_normalisation_trains(lite0, name, moves, tmp_path):
    attach(method(name), lite0)
    set_training(lite0)
    before = {key: value.clone() for key, value in lite0.named_buffers()}
    lite0(torch.randn(2, 3, 64, 64)).sum().backward()
    same = all(torch.equal(value, before[key]) for key, value in lite0.named_buffers())
    assert same is not moves
    state = trained_state(lite0)
    assert ("bn1.running_mean" in state) is moves
    save_state(tmp_path, state, {})
    with torch.no_grad():
        for key in state:
            lite0.get_parameter(key).zero_() if key in dict(lite0.named_parameters()) else lite0.get_buffer(key).zero_()
    load_state(tmp_path, method(name), lite0)
    assert all(torch.equal(value, state[key]) for key, value in trained_state(lite0).items())


def test_a_timm_vision_transformer_loads_from_a_folder_and_its_fused_matrix_is_adapted(tmp_path, cache):
    torch.manual_seed(0)
    source = timm.create_model("vit_base_patch16_224.augreg_in21k", num_classes=7, depth=2)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    overrides = [
        "model=vit_base_in21k_timm", "dataset=packaged/digits", "method=neat", "dataset.image_size=64",
        f"model.path={tmp_path}", "+model.arguments.depth=2",
    ]  # fmt: skip
    config = build(compose(overrides))
    model, _, origin = config.model.load(Head, cache)
    assert origin["origin"] == "folder"
    assert torch.equal(model.blocks[1].attn.qkv.weight, source.blocks[1].attn.qkv.weight)
    assert head_names(model) == {"head.weight", "head.bias"}
    model.eval()
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    assert before.shape == (2, 5)
    attach(config.method, model)
    torch.testing.assert_close(model(x), before)
    assert {place.rows for place in find_places(source, ["query", "value"], None)} == {(0, 768), (1536, 2304)}


def test_weights_that_do_not_fit_and_names_that_do_not_exist_are_named(tmp_path, cache):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    for change in ("model.architecture=nosuch", "model.architecture=resnet18"):
        config = build(
            compose(["model=vit_base_in21k_timm", f"model.path={tmp_path}", "dataset=packaged/digits", change])
        )
        with pytest.raises(InputError, match="cannot load the model vit_base_in21k_timm"):
            config.model.load(Head, cache)
