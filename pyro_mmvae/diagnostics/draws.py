"""Posterior draws with what vouches for them, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pyro_mmvae.arrays import counted

Method = Literal["auto", "guide", "refined", "psis", "hmc", "nuts"]
WHOSE = {
    "guide": "its own draws",
    "refined": "of a normal fitted to the row's posterior",
    "psis": "resampled by smoothed weights",
    "hmc": "chains of all rows side by side",
    "nuts": "chains by Pyro's NUTS",
}


@dataclass(repr=False)
class PosteriorDraws:
    """Draws from p(z | x_S), and for every row which method they are from and what vouches for them.

    Attributes:
        latents: site -> (draw, row, *event), unweighted. The private code of a modality that a row lacks is drawn from
            its prior, and NaN where no row nearby has that modality.
        method: (row,) names: "guide", "refined", "psis", "hmc" or "nuts".
        khat: (row,), of the best importance weights that were looked at for the row.
        ess: (row,), effective number of draws: of those weights, or of the chains.
        rhat: (row,), of the chains; NaN for the other methods.
        certified: (row,) bool, whether the row keeps the tolerance. Where it does not, the budget was spent, or nothing
            that was tried was good enough.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> found = mm.posterior_draws(vae, x, method="guide", num_draws=100, progress=False)
        >>> set(found.method), bool(found.rhat.isnan().all())
        ({'guide'}, True)
    """

    latents: dict[str, Tensor]
    method: list[str]
    khat: Tensor
    ess: Tensor
    rhat: Tensor
    certified: Tensor

    def diagnostics(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """khat, ess, rhat and certified."""
        return self.khat, self.ess, self.rhat, self.certified

    def __repr__(self) -> str:
        draws = next(len(value) for value in self.latents.values())
        rows, present = counted(len(self.method), "row"), [m for m in get_args(Method) if m in self.method]
        lines = [
            f"{counted(draws, 'draw')} of {', '.join(self.latents)} for each of {rows}",
            f"{'method':8} {'rows':>6} {'certified':>10} {'worst k-hat':>12} {'least ess':>10} {'worst r-hat':>12}",
            *map(self._line, present),
            "; ".join(f"{name}: {WHOSE[name]}" for name in present),
            "certified: no posterior mean is off by more than the tolerance, as far as can be told",
        ]
        return "\n".join(lines)

    def _line(self, name: Method) -> str:
        rows = torch.tensor([m == name for m in self.method])
        rhat = float(self.rhat[rows].max())
        return (
            f"{name:8} {int(rows.sum()):6} {int(self.certified[rows].sum()):10}"
            f" {float(self.khat[rows].max()):12.2f} {float(self.ess[rows].min()):10.0f}"
            f" {'' if rhat != rhat else f'{rhat:.3f}':>12}"
        )
