"""Pictures: matplotlib only, an Axes in (or None for a new one), the Axes out."""

from pyro_mmvae.plots.calibration import plot_certificate, plot_compare, plot_coverage, plot_khat, plot_ranks
from pyro_mmvae.plots.data import plot_latent, plot_missingness
from pyro_mmvae.plots.entries import plot_cross_modal, plot_reconstructions
from pyro_mmvae.plots.entry import plot_entry
from pyro_mmvae.plots.training import plot_history

__all__ = [
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
]
