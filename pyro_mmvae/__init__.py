"""Multimodal variational autoencoders as honest Pyro programs, with a posterior that you can trust.

The names below are grouped by kind; `mm.recipes` holds the published methods.
"""

__version__ = "0.1.0"

# The model
from pyro_mmvae.data import Batch, from_nan, hide

# Distributions
from pyro_mmvae.distributions import Mixture, Rows, Stacked, Switch

# Fusions: how experts become a posterior
from pyro_mmvae.fusion import Fusion, MoE, MoPoE, PoE

from pyro_mmvae.guess import guess_modalities

# Questions to a trained model
from pyro_mmvae.inference import LogLikelihood, generate, impute, log_likelihood, predict, translate

# Likelihood heads
from pyro_mmvae.likelihoods import (
    BernoulliLikelihood,
    BinomialLikelihood,
    CategoricalLikelihood,
    Fixed,
    LaplaceLikelihood,
    LearnedScale,
    NegativeBinomialLikelihood,
    NormalLikelihood,
    PoissonLikelihood,
    Positive,
    StudentTLikelihood,
)
from pyro_mmvae.modality import Experts, Modality

# Networks
from pyro_mmvae.networks import (
    LaplaceHead,
    NormalHead,
    OneHot,
    Standardize,
    batched,
    conv_decoder,
    conv_encoder,
    conv_trunk,
    encoder,
    mlp,
)

# Priors of the shared code
from pyro_mmvae.priors import GaussianMixture, LearnedNormal, StandardNormal
from pyro_mmvae.programs import Pair, scaled

# Certificates
from pyro_mmvae.psis import khat_limit

# Training
from pyro_mmvae.training import History, constant, cosine, fit
from pyro_mmvae.vae import EVERYTHING, MultimodalVAE, View

__all__ = [
    "EVERYTHING",
    "Batch",
    "BernoulliLikelihood",
    "BinomialLikelihood",
    "CategoricalLikelihood",
    "Experts",
    "Fixed",
    "Fusion",
    "GaussianMixture",
    "History",
    "LaplaceHead",
    "LaplaceLikelihood",
    "LearnedNormal",
    "LearnedScale",
    "LogLikelihood",
    "Mixture",
    "MoE",
    "MoPoE",
    "Modality",
    "MultimodalVAE",
    "NegativeBinomialLikelihood",
    "NormalHead",
    "NormalLikelihood",
    "OneHot",
    "Pair",
    "PoE",
    "PoissonLikelihood",
    "Positive",
    "Rows",
    "Stacked",
    "StandardNormal",
    "Standardize",
    "StudentTLikelihood",
    "Switch",
    "View",
    "batched",
    "constant",
    "conv_decoder",
    "conv_encoder",
    "conv_trunk",
    "cosine",
    "encoder",
    "fit",
    "from_nan",
    "generate",
    "guess_modalities",
    "hide",
    "impute",
    "khat_limit",
    "log_likelihood",
    "mlp",
    "predict",
    "scaled",
    "translate",
]
