"""What a model has learnt from data, beyond its likelihood."""

from pyro_mmvae.metrics.coherence import Coherence, coherence, joint_coherence
from pyro_mmvae.metrics.frechet import frechet_distance
from pyro_mmvae.metrics.imputation import ImputationError, imputation_error
from pyro_mmvae.metrics.judge import Judge, linear_probe
from pyro_mmvae.metrics.retrieval import Retrieval, latent_similarity, predictive_similarity, retrieval

__all__ = [
    "Coherence",
    "ImputationError",
    "Judge",
    "Retrieval",
    "coherence",
    "frechet_distance",
    "imputation_error",
    "joint_coherence",
    "latent_similarity",
    "linear_probe",
    "predictive_similarity",
    "retrieval",
]
