"""Pyro programs as modules, one thread at a time; how sites are weighted, and pairs of programs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_mmvae.announce import announce
from pyro_mmvae.checks import kind_of
from pyro_mmvae.warn import warn

_TURN = threading.RLock()
PATIENCE = 10.0
"""Seconds that a thread waits for another one before it says so."""
FAILURES = (ValueError, TypeError, AttributeError, LookupError, RuntimeError)
"""What a user's program may raise on data in another layout, or of more rows, than it expects."""


@contextmanager
def alone() -> Iterator[None]:
    """One thread at a time: inside, every other one that wants to train or to ask a model waits.

    Pyro's handlers, its validation flag and torch's generator belong to the process, not to a thread, so two programs
    that run side by side would end up in each other's traces and draw each other's random numbers. With this, what
    `fit` and the tools return from threads is what they return without. Nothing is gained in speed; for that, use
    processes. Ctrl-C inside leaves Pyro's handlers and plates as they were, at whatever moment it comes.

    Limits: a call that runs under a handler of the user's own, such as a step of stock SVI, cannot wait, as its
    handlers already stand; it is refused, see `Program`. Random numbers that another thread draws from torch's global
    generator meanwhile are missing here: let it draw them from a `torch.Generator` of its own.
    """
    if not _TURN.acquire(timeout=PATIENCE):
        warn(
            f"waited {PATIENCE:g} s for another thread that trains or asks a model, and go on waiting: Pyro runs one"
            " program at a time in a process; use processes",
            RuntimeWarning,
        )
        _TURN.acquire()
    handlers, dims = list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)
    try:
        yield
    except KeyboardInterrupt:  # while Pyro puts a handler up or takes one down, which would stay for good
        _PYRO_STACK[:], _DIM_ALLOCATOR._stack[:] = handlers, dims
        raise
    finally:
        _TURN.release()


class Pair(NamedTuple):
    """Any model and guide that keep the contract, for every tool that takes a `MultimodalVAE`.

    Both are callables `(x, mask)` that share a plate "data"; the model samples latent sites and one observed site a
    modality, named after it; the guide samples the latent sites. A modality that hangs on another one takes the value
    that `pyro.sample` returned for that: what was observed of it, or what a tool has drawn. What the mask hides
    has numbers in x all the same: a model that scores them, without `.mask(mask[name])`, is refused by the tools. In a
    guide they are zeros.

    Limits: nothing checks that densities integrate to one, that factors and sites of other names leave out a modality
    that is hidden whole (nor what hangs on a value under `.mask`: `obs_mask` draws it), and that x[name] itself is
    observed: of a transform, log p is that of the transform. A code that the guide leaves out is drawn from the prior.

    Holes that depend on what they hide (missing not at random, by a mask of itself) are such a modality:

        value = pyro.sample("x", p, obs=x["x"], obs_mask=mask["x"])
        pyro.sample("seen", dist.Bernoulli(logits=a + b * value).mask(mask["seen"]), obs=x["seen"])

    Train it by `mm.Objective(bound=mm.objectives.iwae, num_particles=20)`, until the slope b settles, and impute with
    the `latents` of `mm.importance(pair, x).resample(100)` or `mm.posterior_draws`, as the guide's z does not know. Of
    a column half hidden so, imputations by linear decoders were then off by 0 to 0.13 standard deviations in the mean
    (0.22 by the default loss, 0.2 to 0.3 after half of the steps), those of a model that takes holes for random by 0.6
    to 0.8. It hangs on the form of both, which data cannot tell: the dependence was the true one here, and an `mlp` as
    decoder with a direction of z to spare was off by 0.03, 0.8 and 1.9 (three seeds), without one by 0.03. Values must
    be continuous: categories left to the model have no gradient. `mm.predict` and `mm.imputation_error` know codes
    alone: take the mean of those imputations (rmse 0.63 in place of 0.70, exactly known model).

    Example:
        >>> import pyro_mmvae as mm
        >>> Pair(model=print, guide=print).guide is print
        True
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]


class Program(nn.Module):
    """A model or a guide as a module, so that `ELBO()(model, guide).parameters()` finds its parameters.

    When it runs under a Pyro handler it announces them, one "param" site each: stock SVI trains what it sees, and two
    models never share a name. Pyro's store holds none of them; while the model lives it knows their names, as
    "vae$$$modalities.image...", by which Pyro's optimisers take settings and save their state.

    Raises:
        RuntimeError: another thread is training or asking a model, see `alone`.
    """

    def __init__(self, vae: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.vae, self.function = vae, function

    def __reduce__(self) -> Any:  # its function goes by the name of the program
        return getattr, (self.vae, self.function.__name__)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not _TURN.acquire(blocking=False):
            raise RuntimeError(
                "another thread is training or asking a model, and Pyro runs one program at a time in a process: wait"
                " for it, or use a process for each"
            )
        try:
            if _PYRO_STACK and not _silences:
                announce(self.vae)
            return self.function(self.vae, *args, **kwargs)
        finally:
            _TURN.release()


def guide_on(guide: Callable[..., Any], batch: Any, codes: Mapping[str, Tensor] = MappingProxyType({})) -> Trace:
    """The trace of a guide on a batch, at those codes if there are any: what is hidden from it is zero, as holes are.

    Ours looks at masks, and may go on with what it made of the batch before.
    """
    seen = batch if isinstance(guide, Program) else batch.blank()
    return poutine.trace(poutine.condition(guide, codes) if codes else guide).get_trace(seen, seen.mask)


def library_of(vae: Any) -> Any:
    """The model of ours behind an object with `model` and `guide`, which knows its modalities; None behind another."""
    found = vae if hasattr(vae, "check_names") else getattr(vae.model, "vae", None)
    return found if hasattr(found, "check_names") else None


def with_posterior(vae: Any) -> Any:
    """What gives q(z | x) as a distribution: the object itself, or the model of ours behind its programs.

    Raises:
        ValueError: programs of the user's, which draw from it and know no more of it.
    """
    found = vae if hasattr(vae, "posterior") else library_of(vae)
    if found is None:
        raise ValueError(
            f"a {type(vae).__name__} can only be drawn from, and this asks for q(z | x) as a distribution; give a"
            " MultimodalVAE, or look at mm.posterior_draws"
        )
    return found


def check_model(vae: Any) -> None:
    """Raises ValueError for what is no object with `model` and `guide`."""
    if isinstance(vae, type) or not (hasattr(vae, "model") and hasattr(vae, "guide")):
        raise ValueError(
            f"{kind_of(vae)} stands where a model is asked for; give a MultimodalVAE, or mm.Pair(model, guide)"
        )


class program:
    """Makes a method of a module one of its Pyro programs; see `Program`."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, vae: nn.Module | None, owner: type | None = None) -> Any:
        return self if vae is None else Program(vae, self.function)


_silences = 0  # how many `silent` are open, in the one thread that has its turn


@contextmanager
def silent() -> Iterator[None]:
    """What loops with a torch optimiser and tools run in: one thread at a time, no parameters announced, short errors.

    Raises:
        ValueError: in one line what was raised inside in several; Pyro adds the shapes of the whole trace.
    """
    global _silences
    with alone():
        _silences += 1
        try:
            with short_errors():
                yield
        finally:
            _silences -= 1


@contextmanager
def short_errors() -> Iterator[None]:
    """A ValueError inside in one line: Pyro adds the shapes of the whole trace."""
    try:
        yield
    except ValueError as error:
        if "\n" in str(error):
            raise ValueError(str(error).splitlines()[0].rstrip(":")) from error
        raise


class weighted_kl(Messenger):
    """Multiplies the scale of every latent site, whatever its name: not every batch has all of them.

    Args:
        beta: the weight of the KL.
    """

    def __init__(self, beta: float | Tensor):
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.beta


class scaled(Messenger):
    """Multiplies the scale of named sites: KL and likelihood weights of any program, zero included.

    Args:
        factors: site name -> factor.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> from pyro.infer import Trace_ELBO
        >>> with scaled({"z": 0.0, "b": 10.0}):  # no KL, and ten times the weight of "b"
        ...     loss = Trace_ELBO().loss(vae.model, vae.guide, x)
    """

    def __init__(self, factors: Mapping[str, float]):
        super().__init__()
        self.factors = factors

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.factors:
            msg["scale"] = msg["scale"] * self.factors[msg["name"]]
