"""Multimodal variational autoencoders as honest Pyro programs."""

from pyro_mmvae.data import Batch, from_nan, hide
from pyro_mmvae.distributions import Mixture, Rows, Stacked, Switch
from pyro_mmvae.fusion import Fusion, MoE, MoPoE, PoE
from pyro_mmvae.likelihoods import *
from pyro_mmvae.modality import Experts, Modality
from pyro_mmvae.networks import *
from pyro_mmvae.priors import GaussianMixture, LearnedNormal, StandardNormal
from pyro_mmvae.vae import EVERYTHING, MultimodalVAE, View, scaled
