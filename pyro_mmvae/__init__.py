"""Multimodal variational autoencoders as honest Pyro programs, with a posterior that you can trust.

The names below are grouped by kind; `mm.recipes` holds the published methods.
"""

__version__ = "0.1.0"

# Published methods, and the passes and bounds that they are made of
from pyro_mmvae import objectives, recipes

# The model
from pyro_mmvae.counts import Last, LogRates
from pyro_mmvae.data import Batch, from_nan, hide
from pyro_mmvae.dataset import MultimodalDataset

# Certificates
from pyro_mmvae.diagnostics import (
    Calibration,
    Certificate,
    Comparison,
    Gaps,
    Importance,
    LeftOut,
    PredictiveCheck,
    RankECDF,
    Sandwich,
    SubsetCertificate,
    TwoSamples,
    annealed_log_likelihood,
    c2st,
    certify,
    compare,
    conditional_log_likelihood,
    gaps,
    guide_predictive_log_likelihood,
    importance,
    leave_one_out,
    rank_ecdf,
    sandwich,
    sbc,
)

# Distributions
from pyro_mmvae.distributions import Columnwise, LogPool, Mixture, Rows, Stacked, Switch
from pyro_mmvae.export import to_arviz
from pyro_mmvae.flows import ZukoTransform

# Fusions: how experts become a posterior
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
from pyro_mmvae.guess import guess_modalities
from pyro_mmvae.images import residual_decoder, residual_encoder, residual_trunk

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

# What was learnt
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
from pyro_mmvae.modality import Experts, Modality

# Networks
from pyro_mmvae.networks import (
    LaplaceHead,
    NormalHead,
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

# Training
from pyro_mmvae.objectives import Objective, Pass
from pyro_mmvae.optim import optim

# Pictures
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

# Priors of the shared code
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

# Certificates
from pyro_mmvae.psis import khat_limit
from pyro_mmvae.sequences import AttentionTrunk, RecurrentTrunk, TokenDecoder
from pyro_mmvae.sleep import Sleep
from pyro_mmvae.storage import load
from pyro_mmvae.tables import (
    CategoryColumn,
    CountColumn,
    OrdinalColumn,
    PositiveColumn,
    RealColumn,
    TableLikelihood,
    TableTrunk,
    outputs_of,
)
from pyro_mmvae.training import History, carry_on, constant, cosine, fit, give_up
from pyro_mmvae.vae import EVERYTHING, MultimodalVAE, View

__all__ = [
    "EVERYTHING",
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
    "Fusion",
    "Gaps",
    "GaussianMixture",
    "GeneralizedPoE",
    "GeometricMean",
    "Hellinger",
    "HierarchicalNormal",
    "History",
    "HoelderMixture",
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
    "TableLikelihood",
    "TableTrunk",
    "TokenDecoder",
    "TwoSamples",
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
    "constant",
    "conv_decoder",
    "conv_encoder",
    "conv_trunk",
    "cosine",
    "encoder",
    "fit",
    "frechet_distance",
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
    "translate",
]
