"""LoRETTA's update: LoRA whose factors are tensor trains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from neat_bench.methods.adapted import AdaptedMap, Face
from neat_bench.methods.base import MapMethod
from neat_bench.methods.checks import check_at_least_one, check_rank
from neat_bench.methods.low_rank import low_rank_linear
from neat_bench.methods.tensor_train import TensorTrain
from neat_bench.models.roles import Place


class LoRETTAMap(AdaptedMap):
    """The two trains of one place; see LoRETTA."""

    def __init__(self, weight: Tensor, rank: int, tt_rank: int, scale: float, zero: bool) -> None:
        super().__init__()
        out, inputs = weight.shape
        self.A = TensorTrain(rank, inputs, tt_rank, zero=False)
        self.B = TensorTrain(out, rank, tt_rank, zero=zero)
        self.scale = scale
        self.dropout = nn.Dropout(0.0)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W0 + s B A."""
        return weight + self.scale * self.B() @ self.A(), bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply x W0^T + b + s (x A^T) B^T."""
        return low_rank_linear(x, linear, self.A(), self.B(), self.scale, self.dropout)


@dataclass(kw_only=True)
class LoRETTA(MapMethod):
    """LoRETTA's reparametrisation (arXiv 2402.11417): dW = s B A, s = alpha / r, A and B tensor trains of tt_rank.

    zero_start: B's last core starts at zero, so step 0 changes nothing; false is the released start, which does not
    keep the output. Parameters per matrix: the cores', see TensorTrain.
    """

    size = "tt_rank"
    rank: int = 8
    tt_rank: int = 5
    alpha: float = 16.0
    zero_start: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(rank=self.rank, tt_rank=self.tt_rank)

    @property
    def starts_at_pretrained(self) -> bool:  # type: ignore[override]
        """Whether a core starts at zero."""
        return self.zero_start

    def make_map(self, place: Place, weight: Tensor) -> LoRETTAMap:
        """Return the trains for one place."""
        check_rank(self.rank, place, weight)
        return LoRETTAMap(weight, self.rank, self.tt_rank, self.alpha / self.rank, self.zero_start)
