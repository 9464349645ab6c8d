"""The DINOv2 backbone taken out of an ONNX graph computes what the graph computes."""

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from transformers import Dinov2Model

from neat_bench.config import build, compose
from neat_bench.models.dinov2_onnx import Dinov2FromOnnx
from neat_bench.packages import package_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found, origin = build(compose(["model=dinov2_s"])).model.locate(tmp_path_factory.mktemp("cache"))
    assert origin["origin"] == "package"
    return found


def test_the_converted_backbone_gives_the_graphs_own_features(folder):
    graph = onnx.load(str(package_file(Dinov2FromOnnx.package, Dinov2FromOnnx.file)))
    nodes = graph.graph.node
    end = max(index for index, node in enumerate(nodes) if node.name.startswith("/backbone/layernorm/"))
    output = nodes[end].output[0]
    del nodes[end + 1 :], graph.graph.output[:]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    (expected,) = ReferenceEvaluator(graph).run(None, {"input_image": image})
    model = Dinov2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        found = model(torch.from_numpy(image)).last_hidden_state.numpy()
    assert found.shape == expected.shape == (1, 257, 384)
    difference = np.abs(found - expected)
    assert difference.max() < 1e-3
    assert difference.mean() < 1e-4
    assert np.abs(expected).mean() > 0.1


def test_the_conversion_is_made_once(folder, tmp_path):
    model = build(compose(["model=dinov2_s"])).model
    first, _ = model.locate(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*.*")}
    assert model.locate(tmp_path)[0] == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "models").rglob("*.*")} == written
