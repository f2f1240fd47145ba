"""What keeps the log p(x) of models from being compared: priors that look at data, less data, another kind of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
from pyro.distributions import Distribution, Independent

from pyro_mmvae.chance import undisturbed
from pyro_mmvae.data import Batch
from pyro_mmvae.distributions import Columnwise, like, plain_support
from pyro_mmvae.experts import Experts
from pyro_mmvae.modes import at_rest
from pyro_mmvae.programs import library_of
from pyro_mmvae.questions import devices
from pyro_mmvae.warn import warn


def explained_by(vae: Any, batch: Batch) -> frozenset[str]:
    """The modalities of the data that a model of ours has a likelihood of; none of another, which cannot be asked."""
    ours = library_of(vae)
    return frozenset() if ours is None else frozenset(n for n in batch if ours.modalities[n].decoder is not None)


def kinds_of(vae: Any, batch: Batch) -> dict[str, list[bool]]:
    """name -> whether its likelihood is one of probabilities, column by column; without those that do not say."""
    ours, found = library_of(vae), {}
    for name, p in ({} if ours is None else ours.likelihoods(batch)).items():
        base = p.base_dist if isinstance(p, Independent) else p
        with suppress(NotImplementedError, ValueError):
            parts = base.parts if isinstance(base, Columnwise) else [base]
            found[name] = [plain_support(part.support).is_discrete for part in parts]
    return found


def warn_of_kinds(kinds: Mapping[str, Mapping[str, list[bool]]]) -> None:
    """Warns of a modality that has probabilities in one model and a density in another."""
    for name in dict.fromkeys(name for of in kinds.values() for name in of):
        models = {model: of[name] for model, of in kinds.items() if name in of}
        columns = max(map(len, models.values()))
        for same in zip(*(kind if len(kind) > 1 else kind * columns for kind in models.values())):
            if len(set(same)) > 1:
                mass, density = (list(models)[same.index(kind)] for kind in (True, False))
                warn(
                    f"modality {name!r} has probabilities in {mass!r} and a density, per unit of the data, in"
                    f" {density!r}: their log p(x) are not to be compared; give both the same kind of likelihood"
                )
                break


@torch.no_grad()
def looks_at_data(vae: Any, batch: Batch) -> bool:
    """Whether a prior of a model of ours changes with the data that the model explains."""
    ours = library_of(vae)
    if ours is None:
        return False
    explained = [name for name, modality in ours.modalities.items() if modality.decoder is not None]
    with at_rest([ours]), undisturbed(devices(ours, batch)):
        experts = ours.experts(batch.few())
        private = getattr(ours, "private_prior", {}).values()  # a model of two levels has none
        parts = [(ours.prior, experts), *((prior, experts.private(None)) for prior in private)]
        return any(_looks(prior, own, explained) for prior, own in parts if prior is not None)


def _looks(prior: Callable[[Experts], Distribution], experts: Experts, explained: Collection[str]) -> bool:
    if hasattr(prior, "guide"):  # of levels, each given a draw of the one above and no data
        return False
    seen = prior(experts)
    try:
        blind = prior(experts.only([name for name in experts if name not in explained]))
        at = like(seen).new_full(seen.event_shape, 0.5)
        return not torch.allclose(seen.log_prob(at), blind.log_prob(at))
    except (TypeError, ValueError):  # without data there is none
        return True
