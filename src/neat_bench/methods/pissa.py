"""PiSSA and MiLoRA: LoRA that starts from the weight's largest or smallest singular triples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neat_bench.errors import InputError
from neat_bench.methods.adapted import is_quantised
from neat_bench.methods.checks import check_rank
from neat_bench.methods.lora import LoRA, LoRAMap
from neat_bench.models.roles import Place


@dataclass(kw_only=True)
class PiSSA(LoRA):
    """PiSSA (arXiv 2404.02948): LoRA with A = sqrt(S_r / s) V_r^T, B = U_r sqrt(S_r / s) from W0 = U S V^T.

    The base becomes W0 - s B A, so step 0 changes nothing up to rounding. triples: largest (PiSSA's), or smallest
    (MiLoRA's, arXiv 2406.09044). niter: None for the exact decomposition, or the iterations of torch's randomised
    one (largest only). Parameters per matrix: r (in + out).
    """

    triples: str = "largest"
    niter: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.triples not in ("largest", "smallest"):
            raise InputError(f"method.triples is largest or smallest, not '{self.triples}'")
        if self.niter is not None and (self.niter < 1 or self.triples == "smallest"):
            raise InputError("method.niter (the randomised decomposition) is at least 1 and finds the largest triples")

    @torch.no_grad()
    def make_map(self, place: Place, weight: Tensor) -> LoRAMap:
        """Return the factors, and take them out of the weight."""
        check_rank(self.rank, place, weight)
        if is_quantised(place.module):
            raise InputError(f"{self.name} takes its start out of the weights, and they are quantised")
        adapted = LoRAMap(weight, self.rank, self.scale, self.dropout).to(weight.device)
        full = weight.to(torch.promote_types(weight.dtype, torch.float32))
        if self.niter is not None:
            with torch.random.fork_rng():  # always the same draw: a saved adapter belongs to the base it leaves
                torch.manual_seed(0)
                U, S, V = torch.svd_lowrank(full, q=self.rank, niter=self.niter)
            Vt = V.t()
        else:
            U, S, Vt = torch.linalg.svd(full, full_matrices=False)
        kept = slice(-self.rank, None) if self.triples == "smallest" else slice(self.rank)
        root = (S[kept] / self.scale).sqrt()
        adapted.A.data = (root[:, None] * Vt[kept]).to(adapted.A.dtype)
        adapted.B.data = (U[:, kept] * root).to(adapted.B.dtype)
        weight.sub_((self.scale * (U[:, kept] * root) @ (root[:, None] * Vt[kept])).to(weight.dtype))
        return adapted
