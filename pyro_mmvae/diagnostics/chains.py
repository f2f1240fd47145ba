"""Markov chains for the rows that no proposal serves, and how well they have mixed."""

from __future__ import annotations

import time
from typing import Any

import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from pyro_mmvae.diagnostics.walk import LONGEST, Path, transition, tuned


def hmc(path: Path, start: Tensor, warmup: int, num_draws: int, deadline: float, apart: int = 1) -> Tensor | None:
    """Draws of all chains and rows side by side, each row with a step size of its own.

    Args:
        path: to the posterior.
        start: (chain, row, size), in the coordinates of the path.
        warmup: draws thrown away, in which the steps are tuned.
        num_draws: of each chain.
        deadline: on the monotonic clock, in seconds.
        apart: how many transitions from one draw to the next.

    Returns:
        (draw, chain, row, size), in the coordinates of the path; None if the time was up first.
    """
    step, state, kept = torch.full_like(path.base.loc[:, 0], LONGEST / 4), path.at(start), []
    for position in range(warmup + num_draws * apart):
        if time.monotonic() > deadline:
            return None
        state, accept = transition(path, state, 1.0, step)
        if position < warmup:
            step = tuned(step, accept, 2 * (1 + position) ** -0.6)
        elif (position + 1 - warmup) % apart == 0:
            kept.append(state.y)
    return torch.stack(kept)


def nuts(path: Path, start: Tensor, warmup: int, num_draws: int, deadline: float) -> Tensor | None:
    """Pyro's NUTS on all chains and rows as one: one step size and one length for all, so for few rows at a time.

    Args and Returns: as `hmc`.
    """

    def potential(values: dict[str, Tensor]) -> Tensor:
        return -path.target.log_prob(path.codes(values["y"]), path.shared).sum()

    def watch(*_: Any) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError

    run = MCMC(
        NUTS(potential_fn=potential),
        num_samples=num_draws,
        warmup_steps=warmup,
        initial_params={"y": start},
        hook_fn=watch,
        disable_progbar=True,
    )
    try:
        with torch.enable_grad():
            run.run()
    except TimeoutError:
        return None
    return run.get_samples()["y"].detach().to(start.dtype)  # Pyro steps in the default precision


def mixing(draws: Tensor) -> tuple[Tensor, Tensor]:
    """R-hat and effective number of draws of every row: the worst of its coordinates.

    Args:
        draws: (draw, chain, row, size).

    Returns:
        (row,) each: the larger of the split R-hats of ranks and of folded ranks, and the bulk effective sample size.

    Reference:
        Vehtari, Gelman, Simpson, Carpenter and Buerkner, 2021, Rank-Normalization, Folding, and Localization: An
        Improved R-hat, https://arxiv.org/abs/1903.08008
    """
    ranks = _normal_scores(draws)
    folded = _normal_scores((draws - draws.flatten(0, 1).median(0).values).abs())
    rhat = torch.maximum(*(split_gelman_rubin(one, chain_dim=1, sample_dim=0) for one in (ranks, folded)))
    ess = effective_sample_size(ranks, chain_dim=1, sample_dim=0)
    return rhat.amax(-1), ess.amin(-1)


def _normal_scores(draws: Tensor) -> Tensor:
    flat = draws.flatten(0, 1)
    ranks = flat.argsort(0).argsort(0) + 1
    return torch.special.ndtri((ranks - 0.375) / (len(flat) + 0.25)).to(draws.dtype).reshape(draws.shape)
