import pytest
import torch

from conftest import logits_of, tiny_models
from neat_bench.errors import InputError
from neat_bench.models.roles import find_places, head_names, parse_layers

SHAPES = {  # role -> (out, in) of the tiny models: 32 wide, MLP 64
    "query": (32, 32), "key": (32, 32), "value": (32, 32), "output": (32, 32), "mlp_up": (64, 32), "mlp_down": (32, 64),
}  # fmt: skip


@pytest.mark.parametrize("name", ["bert", "roberta", "vit", "dinov2", "llama", "timm"])
def test_roles_lead_to_matrices_of_the_right_shape(make_model, name):
    model, _ = make_model(name)
    shapes = SHAPES | ({"mlp_gate": (64, 32), "key": (16, 32), "value": (16, 32)} if name == "llama" else {})
    places = find_places(model, list(shapes), None)
    assert [place.layer for place in places] == [layer for layer in range(3) for _ in shapes]
    for place in places:
        rows = place.rows or (0, place.module.weight.shape[0])
        assert (rows[1] - rows[0], place.module.weight.shape[1]) == shapes[place.role], place.path
        assert model.get_submodule(place.path) is place.module


def test_slices_of_the_fused_matrix_are_query_key_and_value(make_model):
    """Zeroing the value slice makes attention give its output bias only; zeroing query makes it uniform."""
    model, inputs = make_model("timm")
    place = {place.role: place for place in find_places(model, ["query", "key", "value"], "0:1")}
    assert [place[role].rows for role in ("query", "key", "value")] == [(0, 32), (32, 64), (64, 96)]
    attention = model.blocks[0].attn
    with torch.no_grad():
        attention.qkv.weight[slice(*place["value"].rows)] = 0
        attention.qkv.bias[slice(*place["value"].rows)] = 0
    x = torch.randn(1, 5, 32, dtype=torch.float64)
    torch.testing.assert_close(attention(x), attention.proj.bias.expand(1, 5, 32))
    assert logits_of(model, inputs).isfinite().all()


HEADS = {"bert": "classifier", "roberta": "classifier", "vit": "classifier", "timm": "head", "llama": None}


@pytest.mark.parametrize(("name", "prefix"), HEADS.items())
def test_the_head_is_what_lies_outside_the_backbone(make_model, name, prefix):
    model, _ = make_model(name)
    assert head_names(model) == {key for key, _ in model.named_parameters() if prefix and key.startswith(prefix)}


@pytest.mark.parametrize(("text", "expected"), [(None, [0, 1, 2, 3, 4, 5]), ("4:", [4, 5]), (":2", [0, 1]),
                                                ("2:4", [2, 3]), ("-1:", [5])])  # fmt: skip
def test_layer_ranges(text, expected):
    assert list(parse_layers(text, 6)) == expected


@pytest.mark.parametrize("text", ["4", "a:b", "9:", "3:3", ""])
def test_bad_layer_ranges(text):
    with pytest.raises(InputError, match=r"method\.layers"):
        parse_layers(text, 6)


def test_an_unknown_family_is_named():
    with pytest.raises(InputError, match="timm:Linear"):
        find_places(torch.nn.Linear(2, 2), ["query"], None)


def test_published_shapes_resolve_without_weights():
    """RoBERTa-base's and Llama-2-7B's architectures on the meta device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())
    places = find_places(model, ["query", "mlp_gate"], None)
    assert len(places) == 64
    assert places[1].module.weight.shape == (11008, 4096)
    assert len(tiny_models()) == 6
