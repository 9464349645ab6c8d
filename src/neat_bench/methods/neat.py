"""NEAT: a small network reads the frozen weight and writes its update.

    W0 (out x in)                      x (tokens x in)
      |                                  |        |
      | transposed                       |        +----------------+
      v                                  v                         v
Z0 = sigma(W0^T A^T)   in x r        x W0^T + b                   x Z      tokens x r
      |      \\                           |                         |
Zi = sigma(Z(i-1) Ei^T)  (k encoders)    |                        B^T      r x out
      |      /  skip                     |                         |
Z  = sigma(Z Dj^T) + Z(k-j) (k decoders) +-----------> + <--- s ---+
      |                                                |
      v                                                v
dW = s (Z B^T)^T  out x in                      y = x W^T + b,  W = W0 + dW
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neat_bench.errors import InputError
from neat_bench.methods.adapted import AdaptedMap, Face
from neat_bench.methods.base import MapMethod
from neat_bench.methods.checks import ACTIVATIONS, check_activation, check_at_least_one, check_dropout, check_rank
from neat_bench.methods.low_rank import low_rank_linear
from neat_bench.models.roles import Place


class NEATMap(AdaptedMap):
    """The network of one place; see NEAT."""

    def __init__(
        self,
        weight: Tensor,
        rank: int,
        depth: int,
        scale: float,
        activation: str,
        dropout: float,
        train_first: bool = True,
    ) -> None:
        super().__init__()
        out, inner = weight.shape[0], (depth - 2) // 2
        self.A = nn.Linear(out, rank, bias=False)
        self.encoders = nn.ModuleList(nn.Linear(rank, rank, bias=False) for _ in range(inner))
        self.decoders = nn.ModuleList(nn.Linear(rank, rank, bias=False) for _ in range(inner))
        self.B = nn.Parameter(torch.zeros(out, rank))
        self.scale, self.activation = scale, ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)
        if not train_first:  # a buffer: kept in the saved state, as a random map has to be
            first = self.A.weight.data
            del self.A.weight
            self.A.register_buffer("weight", first)

    def of_weight(self, weight: Tensor) -> Tensor:
        """Return Z transposed, r x in: everything before the last, linear map.

        The weight is read in its own dtype, whatever autocast says, so that no copy of it is made.
        """
        with torch.autocast(weight.device.type, enabled=False):
            z = self.activation((self.A.weight.to(weight.dtype) @ weight).to(self.A.weight.dtype))
            skips = []
            for encoder in self.encoders:
                skips.append(z)
                z = self.activation(encoder(z.t()).t())
            for decoder in self.decoders:
                z = self.activation(decoder(z.t()).t()) + skips.pop()
        return z

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return W0 + s B Z^T."""
        return weight + self.scale * (self.B @ self.of_weight(weight)), bias

    def forward(self, x: Tensor, linear: Face) -> Tensor:
        """Apply x W0^T + b + s (x Z) B^T; the update, out x in, is never formed."""
        return low_rank_linear(x, linear, self.shared(linear), self.B, self.scale, self.dropout)


@dataclass(kw_only=True)
class NEAT(MapMethod):
    """NEAT (arXiv 2410.01870): W = W0 + s f(W0), f a small network with weights A, B and r x r inner ones.

    Two layers: f(W0)^T = sigma(W0^T A^T) B^T, A: r x out, B: out x r. With depth d, even, k = (d - 2) / 2
    encoders and k decoders, each r x r, lie between them, joined by skip connections: Z0 = sigma(W0^T A^T),
    Zi = sigma(Z(i-1) Ei^T), then Z = sigma(Z Dj^T) + Z(k-j). No biases anywhere.
    Initialisation: A and inner weights Kaiming uniform (a = sqrt 5), B zero, so step 0 changes nothing.
    Parameters per matrix: 2 out r + 2 k r^2, whatever the input width.
    activation: relu (the released code's), leaky_relu, gelu, tanh, sigmoid, sin (sin(2 pi z)) or identity,
    which leaves the purely multiplicative form. train_first=false freezes A at its random start (the ablation of
    what the nonlinearity gives by itself). dropout acts on the adapter's input x.
    """

    size = "rank"
    rank: int = 8
    depth: int = 2
    scale: float = 1.0
    activation: str = "relu"
    dropout: float = 0.0
    train_first: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(rank=self.rank)
        if self.depth < 2 or self.depth % 2:
            raise InputError(f"method.depth is an even number of layers, at least 2, not {self.depth}")
        check_activation(self.activation)
        check_dropout(self.dropout)

    def make_map(self, place: Place, weight: Tensor) -> NEATMap:
        """Return the network for one place."""
        check_rank(self.rank, place, weight)
        return NEATMap(weight, self.rank, self.depth, self.scale, self.activation, self.dropout, self.train_first)
