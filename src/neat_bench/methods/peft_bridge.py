"""Any Hugging Face peft method in the same trainer: `method=peft/<name>`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from neat_bench.errors import InputError, nearest
from neat_bench.methods.adapted import weight_at
from neat_bench.methods.base import Method
from neat_bench.models.roles import Place, backbone_of, head_names


@dataclass(kw_only=True)
class PeftMethod(Method):
    """A peft config (`config._target_`, such as peft.BOFTConfig, and its options) on the places that targets name.

    Adapters stay beside the weights in evaluation. Prompt-learning types (prefix, prompt and p-tuning) have no
    targets; they apply to text models, and to language models that are scored by likelihood. Parameters, start and
    equations: peft's documentation of the type.
    """

    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not str(self.config.get("_target_", "")).startswith("peft."):
            raise InputError("method.config._target_ names a config class of peft, such as peft.BOFTConfig")

    def make_config(self, **more: Any) -> Any:
        """Return peft's config object; raises InputError for an unknown class and for options it refuses."""
        import peft

        options = {**self.config, **more}
        name = options.pop("_target_").removeprefix("peft.")
        known = [each for each in dir(peft) if each.endswith("Config")]
        if name not in known:
            raise InputError(f"peft has no '{name}' (method.config._target_){nearest(name, known)}")
        try:
            return getattr(peft, name)(**options)
        except (TypeError, ValueError) as error:
            raise InputError(f"peft.{name}: {str(error).splitlines()[0]}") from None

    def attach(self, model: nn.Module, places: list[Place]) -> None:
        """Inject peft's layers at the places, or wrap the model's forward for prompt learning."""
        import peft

        head = head_names(model)
        try:
            if not self.targets:
                self._attach_prompts(model)
            else:
                for place in places:
                    weight_at(place, self.name)
                    if place.rows is not None:
                        raise InputError(f"{self.name}: peft cannot adapt a part of {place.path} (a fused matrix)")
                config = self.make_config(target_modules=[place.path for place in places])
                # it replaces the layers inside the model; the wrapper that it returns is not needed
                peft.get_peft_model(model, config)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{self.name} does not fit this model: {reason}") from None
        for name, parameter in model.named_parameters():
            if name in head:
                parameter.requires_grad_(True)

    def _attach_prompts(self, model: nn.Module) -> None:
        import peft

        if getattr(getattr(model, "config", None), "vocab_size", None) is None:
            raise InputError(f"{self.name} learns prompts, which need a text model")
        causal = type(model).__name__.endswith("ForCausalLM")
        # for classifiers peft's type for features: its own for classification would copy the head
        config = self.make_config(task_type="CAUSAL_LM" if causal else "FEATURE_EXTRACTION")
        wrapped = peft.get_peft_model(model, config)
        _, backbone = backbone_of(model)
        # inside the backbone: what trains outside it counts as the task head
        backbone.add_module("prompt_encoder", wrapped.prompt_encoder)

        def forward(*arguments: Any, **inputs: Any) -> Any:
            del model.forward  # peft calls the model again, and means its own forward
            try:
                return wrapped(*arguments, **inputs)
            finally:
                model.forward = forward

        model.forward = forward
