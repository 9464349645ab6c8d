"""Nonlinear LoRA: the step between LoRA and NEAT in the ablation ladder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from neat_bench.methods.adapted import Face
from neat_bench.methods.checks import ACTIVATIONS, check_activation, check_rank
from neat_bench.methods.lora import LoRA, LoRAMap
from neat_bench.methods.low_rank import low_rank_linear
from neat_bench.models.roles import Place


class NonlinearLoRAMap(LoRAMap):
    """LoRA's factors, one of them under an activation; see NonlinearLoRA."""

    def __init__(self, weight: Tensor, rank: int, scale: float, dropout: float, activation: str) -> None:
        super().__init__(weight, rank, scale, dropout)
        self.activation = ACTIVATIONS[activation]

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W0 + s B sigma(A)."""
        return weight + self.scale * (self.B @ self.activation(self.A)), bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply x W0^T + b + s (x sigma(A)^T) B^T."""
        return low_rank_linear(x, linear, self.activation(self.A), self.B, self.scale, self.dropout)


@dataclass(kw_only=True)
class NonlinearLoRA(LoRA):
    """dW = s B sigma(A): a nonlinearity that never sees W0, on the factor that does not start at zero.

    What NEAT's reviewers asked to see beside it. Initialisation and parameters: LoRA's; B is zero, so step 0 changes
    nothing, whatever sigma(0) is.
    """

    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_activation(self.activation)

    def make_map(self, place: Place, weight: Tensor) -> NonlinearLoRAMap:
        """Return the factors for one place."""
        check_rank(self.rank, place, weight)
        return NonlinearLoRAMap(weight, self.rank, self.scale, self.dropout, self.activation)
