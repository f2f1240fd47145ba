"""Multimodal variational autoencoders as honest Pyro programs, with a posterior that you can trust.

    import pyro_mmvae as mm

The model: MultimodalVAE of Modality, with a prior and a fusion; Pair for programs of your own; View says what the
guide looks at and what the model explains (EVERYTHING by default); scaled weighs sites; guess_modalities is a start.

Data: from_nan and hide make masks, Batch is checked data, MultimodalDataset is data on disk, Table is for tables of
pandas, from_mudata and to_mudata are for cells; load reads a model that `vae.save` wrote.

Fusions, experts to posterior (Fusion, Experts): PoE, GeneralizedPoE, MoE, MoPoE, GeometricMean, WassersteinMean,
MixtureOfWasserstein, Hellinger, HoelderMixture, CoDE, DeepSets, Attention, JointEncoder, LadderPoE, Flow, Conditioned,
LooksAt, WhereGiven.

Priors: StandardNormal, LearnedNormal, Laplace, GaussianMixture, VampPrior, FlowPrior, HierarchicalNormal, Ladder,
Pooled, DynamicPrior, any function that returns a distribution; ZukoTransform for flows of zuko.

Likelihoods: BernoulliLikelihood, BinomialLikelihood, NormalLikelihood, LaplaceLikelihood, StudentTLikelihood,
CategoricalLikelihood, PoissonLikelihood, NegativeBinomialLikelihood; TableLikelihood of RealColumn, PositiveColumn,
CountColumn, OrdinalColumn, CategoryColumn, outputs_of them; scales LearnedScale, Positive, Fixed.

Networks: mlp, encoder, conv_encoder, conv_trunk, conv_decoder, residual_encoder, residual_trunk, residual_decoder,
AttentionTrunk, RecurrentTrunk, TokenDecoder, TableTrunk, LogRates, Last, WithHoles, SeesHoles, Standardize, OneHot,
NormalHead, FullRankHead, LaplaceHead, batched.

Training: fit, with History and the schedules cosine and constant, and carry_on or give_up where a disk is full; Adam,
and optim for stock SVI; Objective and Pass in objectives; Sleep; MeanLoss for several processes; recipes, the published
methods.

Questions: generate, impute, predict, translate, log_likelihood (a LogLikelihood), to_arviz.

Trust: posterior_draws (PosteriorDraws), certify (a Certificate of SubsetCertificate), compare (a Comparison),
importance (an Importance), khat_limit, sbc (a Calibration), rank_ecdf (a RankECDF), gaps (a Gaps), usage (a Usage),
consistency (a Nested), c2st (a TwoSamples), leave_one_out (a PredictiveCheck of LeftOut), conditional_log_likelihood,
guide_predictive_log_likelihood, iwae_curve (an IWAECurve), annealed_log_likelihood, sandwich (a Sandwich).

What was learnt: coherence and joint_coherence (a Coherence) under a Judge, linear_probe, retrieval (a Retrieval) by
latent_similarity or predictive_similarity, imputation_error (an ImputationError), frechet_distance.

Pictures: plot_history, plot_missingness, plot_latent, plot_khat, plot_ranks, plot_coverage, plot_cross_modal,
plot_reconstructions, plot_entry, plot_certificate, plot_compare.

Distributions: Mixture, LogPool, Rows, Switch, Stacked, Columnwise.
"""

__version__ = "0.1.0"

from pyro_mmvae import objectives, recipes
from pyro_mmvae.columns import (
    CategoryColumn,
    CountColumn,
    OrdinalColumn,
    PositiveColumn,
    RealColumn,
    outputs_of,
)
from pyro_mmvae.counts import Last, LogRates
from pyro_mmvae.data import Batch
from pyro_mmvae.dataset import MultimodalDataset
from pyro_mmvae.diagnostics import (
    Calibration,
    Certificate,
    Comparison,
    Gaps,
    Importance,
    IWAECurve,
    LeftOut,
    Nested,
    PosteriorDraws,
    PredictiveCheck,
    RankECDF,
    Sandwich,
    SubsetCertificate,
    TwoSamples,
    Usage,
    annealed_log_likelihood,
    c2st,
    certify,
    compare,
    conditional_log_likelihood,
    consistency,
    gaps,
    guide_predictive_log_likelihood,
    importance,
    iwae_curve,
    leave_one_out,
    posterior_draws,
    rank_ecdf,
    sandwich,
    sbc,
    usage,
)
from pyro_mmvae.distributions import Columnwise, LogPool, Mixture, Rows, Stacked, Switch
from pyro_mmvae.evidence import LogLikelihood, log_likelihood
from pyro_mmvae.experts import Experts
from pyro_mmvae.export import to_arviz
from pyro_mmvae.flows import ZukoTransform
from pyro_mmvae.frames import Table
from pyro_mmvae.fusion import (
    Attention,
    CoDE,
    Conditioned,
    DeepSets,
    Flow,
    Fusion,
    GeneralizedPoE,
    GeometricMean,
    Hellinger,
    HoelderMixture,
    JointEncoder,
    Ladder,
    LadderPoE,
    LooksAt,
    MixtureOfWasserstein,
    MoE,
    MoPoE,
    PoE,
    WassersteinMean,
    WhereGiven,
)
from pyro_mmvae.generation import generate
from pyro_mmvae.guess import guess_modalities

# Networks
from pyro_mmvae.heads import FullRankHead, LaplaceHead, NormalHead
from pyro_mmvae.holes import from_nan, hide
from pyro_mmvae.images import residual_decoder, residual_encoder, residual_trunk
from pyro_mmvae.inference import impute, predict, translate
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
from pyro_mmvae.metrics import (
    Coherence,
    ImputationError,
    Judge,
    Retrieval,
    coherence,
    frechet_distance,
    imputation_error,
    joint_coherence,
    latent_similarity,
    linear_probe,
    predictive_similarity,
    retrieval,
)
from pyro_mmvae.modality import Modality
from pyro_mmvae.mudata import from_mudata, to_mudata
from pyro_mmvae.networks import (
    OneHot,
    SeesHoles,
    Standardize,
    WithHoles,
    batched,
    conv_decoder,
    conv_encoder,
    conv_trunk,
    encoder,
    mlp,
)
from pyro_mmvae.objectives import Objective, Pass
from pyro_mmvae.optim import Adam, optim
from pyro_mmvae.plots import (
    plot_certificate,
    plot_compare,
    plot_coverage,
    plot_cross_modal,
    plot_entry,
    plot_history,
    plot_khat,
    plot_latent,
    plot_missingness,
    plot_ranks,
    plot_reconstructions,
)
from pyro_mmvae.priors import (
    DynamicPrior,
    FlowPrior,
    GaussianMixture,
    HierarchicalNormal,
    Laplace,
    LearnedNormal,
    Pooled,
    StandardNormal,
    VampPrior,
)
from pyro_mmvae.processes import MeanLoss
from pyro_mmvae.programs import Pair, scaled
from pyro_mmvae.psis import khat_limit
from pyro_mmvae.sequences import AttentionTrunk, RecurrentTrunk, TokenDecoder
from pyro_mmvae.sleep import Sleep
from pyro_mmvae.storage import load
from pyro_mmvae.tables import TableLikelihood, TableTrunk
from pyro_mmvae.training import History, carry_on, constant, cosine, fit, give_up
from pyro_mmvae.vae import MultimodalVAE
from pyro_mmvae.view import EVERYTHING, View

__all__ = [
    "EVERYTHING",
    "Adam",
    "Attention",
    "AttentionTrunk",
    "Batch",
    "BernoulliLikelihood",
    "BinomialLikelihood",
    "Calibration",
    "CategoricalLikelihood",
    "CategoryColumn",
    "Certificate",
    "CoDE",
    "Coherence",
    "Columnwise",
    "Comparison",
    "Conditioned",
    "CountColumn",
    "DeepSets",
    "DynamicPrior",
    "Experts",
    "Fixed",
    "Flow",
    "FlowPrior",
    "FullRankHead",
    "Fusion",
    "Gaps",
    "GaussianMixture",
    "GeneralizedPoE",
    "GeometricMean",
    "Hellinger",
    "HierarchicalNormal",
    "History",
    "HoelderMixture",
    "IWAECurve",
    "Importance",
    "ImputationError",
    "JointEncoder",
    "Judge",
    "Ladder",
    "LadderPoE",
    "Laplace",
    "LaplaceHead",
    "LaplaceLikelihood",
    "Last",
    "LearnedNormal",
    "LearnedScale",
    "LeftOut",
    "LogLikelihood",
    "LogPool",
    "LogRates",
    "LooksAt",
    "MeanLoss",
    "Mixture",
    "MixtureOfWasserstein",
    "MoE",
    "MoPoE",
    "Modality",
    "MultimodalDataset",
    "MultimodalVAE",
    "NegativeBinomialLikelihood",
    "Nested",
    "NormalHead",
    "NormalLikelihood",
    "Objective",
    "OneHot",
    "OrdinalColumn",
    "Pair",
    "Pass",
    "PoE",
    "PoissonLikelihood",
    "Pooled",
    "Positive",
    "PositiveColumn",
    "PosteriorDraws",
    "PredictiveCheck",
    "RankECDF",
    "RealColumn",
    "RecurrentTrunk",
    "Retrieval",
    "Rows",
    "Sandwich",
    "SeesHoles",
    "Sleep",
    "Stacked",
    "StandardNormal",
    "Standardize",
    "StudentTLikelihood",
    "SubsetCertificate",
    "Switch",
    "Table",
    "TableLikelihood",
    "TableTrunk",
    "TokenDecoder",
    "TwoSamples",
    "Usage",
    "VampPrior",
    "View",
    "WassersteinMean",
    "WhereGiven",
    "WithHoles",
    "ZukoTransform",
    "annealed_log_likelihood",
    "batched",
    "c2st",
    "carry_on",
    "certify",
    "coherence",
    "compare",
    "conditional_log_likelihood",
    "consistency",
    "constant",
    "conv_decoder",
    "conv_encoder",
    "conv_trunk",
    "cosine",
    "encoder",
    "fit",
    "frechet_distance",
    "from_mudata",
    "from_nan",
    "gaps",
    "generate",
    "give_up",
    "guess_modalities",
    "guide_predictive_log_likelihood",
    "hide",
    "importance",
    "imputation_error",
    "impute",
    "iwae_curve",
    "joint_coherence",
    "khat_limit",
    "latent_similarity",
    "leave_one_out",
    "linear_probe",
    "load",
    "log_likelihood",
    "mlp",
    "objectives",
    "optim",
    "outputs_of",
    "plot_certificate",
    "plot_compare",
    "plot_coverage",
    "plot_cross_modal",
    "plot_entry",
    "plot_history",
    "plot_khat",
    "plot_latent",
    "plot_missingness",
    "plot_ranks",
    "plot_reconstructions",
    "posterior_draws",
    "predict",
    "predictive_similarity",
    "rank_ecdf",
    "recipes",
    "residual_decoder",
    "residual_encoder",
    "residual_trunk",
    "retrieval",
    "sandwich",
    "sbc",
    "scaled",
    "to_arviz",
    "to_mudata",
    "translate",
    "usage",
]
