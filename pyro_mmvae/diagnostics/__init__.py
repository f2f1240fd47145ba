"""Is q(z | x_S) right, for every subset of modalities and every row?"""

from pyro_mmvae.diagnostics.annealed import Sandwich, annealed_log_likelihood, sandwich
from pyro_mmvae.diagnostics.calibration import Calibration, sbc
from pyro_mmvae.diagnostics.certificate import Certificate, SubsetCertificate
from pyro_mmvae.diagnostics.certify import certify
from pyro_mmvae.diagnostics.compare import Comparison, compare
from pyro_mmvae.diagnostics.conditional import conditional_log_likelihood, guide_predictive_log_likelihood
from pyro_mmvae.diagnostics.curve import IWAECurve, iwae_curve
from pyro_mmvae.diagnostics.draws import PosteriorDraws
from pyro_mmvae.diagnostics.escalation import posterior_draws
from pyro_mmvae.diagnostics.gaps import Gaps, gaps
from pyro_mmvae.diagnostics.importance import Importance, importance
from pyro_mmvae.diagnostics.nested import Nested, consistency
from pyro_mmvae.diagnostics.predictive import LeftOut, PredictiveCheck, leave_one_out
from pyro_mmvae.diagnostics.ranks import RankECDF, rank_ecdf
from pyro_mmvae.diagnostics.two_samples import TwoSamples, c2st
from pyro_mmvae.diagnostics.usage import Usage, usage

__all__ = [
    "Calibration",
    "Certificate",
    "Comparison",
    "Gaps",
    "IWAECurve",
    "Importance",
    "LeftOut",
    "Nested",
    "PosteriorDraws",
    "PredictiveCheck",
    "RankECDF",
    "Sandwich",
    "SubsetCertificate",
    "TwoSamples",
    "Usage",
    "annealed_log_likelihood",
    "c2st",
    "certify",
    "compare",
    "conditional_log_likelihood",
    "consistency",
    "gaps",
    "guide_predictive_log_likelihood",
    "importance",
    "iwae_curve",
    "leave_one_out",
    "posterior_draws",
    "rank_ecdf",
    "sandwich",
    "sbc",
    "usage",
]
