# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own model, your own guide, and NUTS as the referee
#
# `mm.MultimodalVAE` is a convenience: two Pyro programs with their networks. Each can be replaced. The contract is one
# sentence: *model and guide are called with `(x, mask)`, share a plate named `data`, and the model has one observed
# site for each modality, named after it.* What keeps it can be trained by `mm.fit`, and asked everything else.
#
# The data: 344 penguins, each with four measurements of the body (two birds have none) and two isotope ratios of the
# blood (fourteen have none). Put your own arrays there, `NaN` where something is missing.

# %%
import os

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from torch import nn
from torch.distributions import constraints

import pyro_mmvae as mm
from pyro_mmvae.datasets import load

SCALE = float(os.environ.get("MMVAE_NOTEBOOK_SCALE", "1"))  # 4 trains four times as long
DIM = 2

birds = load("penguins")
x = {name: torch.tensor(birds[name]).float() for name in ["body", "isotopes"]}
x = {name: (v - v.nanmean(0)) / (v - v.nanmean(0)).square().nanmean(0).sqrt() for name, v in x.items()}
order = torch.randperm(len(x["body"]), generator=torch.Generator().manual_seed(0))
train, test = ({k: v[rows] for k, v in x.items()} for rows in (order[:260], order[260:]))
ax = mm.plot_missingness(train)

# %% [markdown]
# ## A model of your own
#
# Two things that the library does not offer in this form: a Student-t prior, because a few birds are odd, with its
# degrees of freedom learnt; and one global noise for each of the six measured quantities. `pyro.param` is how Pyro
# writes a global parameter, and `mm.fit` finds it. The library's layout has rows at dim -2 and repeats of a measurement
# at dim -1, so that is where our plate goes.

# %%
torch.manual_seed(0)
decoders = nn.ModuleDict({"body": mm.mlp(DIM, 32, 4), "isotopes": mm.mlp(DIM, 32, 2)})


def heavy():
    df = pyro.param("df", lambda: torch.tensor(6.0), constraint=constraints.greater_than(2.0))
    return dist.StudentT(df, torch.zeros(DIM), 1.0).to_event(1)


def model(x=None, mask=None):
    batch = mm.Batch.of(x, mask)  # checks, and fills what is hidden with zeros; without x: one row with nothing in it
    pyro.module("decoders", decoders)
    with pyro.plate("data", batch.rows, dim=-2):
        z = pyro.sample("z", heavy())
        for name, decoder in decoders.items():
            noise = pyro.param(f"noise of {name}", lambda: torch.full((x[name].shape[1],), 0.5), constraints.positive)
            p = dist.Normal(decoder(z), noise)
            if x is None:
                pyro.sample(name, p.to_event(1))
            elif name in batch:
                seen = batch.mask[name].reshape(batch.rows, 1, -1)
                pyro.sample(name, p.mask(seen).to_event(1), obs=batch[name].unsqueeze(1))


# %% [markdown]
# The guide is the library's: modalities that are only looked at (no decoder), and a product of their experts. A bird
# of which nothing is known gets the prior, so we hand over ours.

# %%
torch.manual_seed(0)
looks = {name: mm.Modality(None, mm.encoder(size, 32, dim=DIM)) for name, size in [("body", 4), ("isotopes", 2)]}
eyes = mm.MultimodalVAE(looks, prior=heavy, fusion=mm.PoE())
own_model = mm.Pair(model, eyes.guide)

x_train, mask_train = mm.hide(train, share=0.3)  # now and then, look at one half of what is known
settings = {"epochs": max(2, int(120 * SCALE)), "batch_size": 65, "lr": 1e-2, "progress": False}
history = mm.fit(own_model, x_train, mask_train, **settings)
ax = mm.plot_history(history)
print(f"degrees of freedom {pyro.param('df'):.1f}; noise of the isotopes {pyro.param('noise of isotopes').tolist()}")

# %% [markdown]
# About twenty degrees of freedom are hardly to be told from a normal: these birds are not so odd after all.
#
# ## A guide of your own
#
# Now the other half. The model is the library's, with the same networks and a normal prior. The guide is ours: one
# network that sees all six numbers at once and which of them are there, and gives a normal *with a covariance*, where a
# product of experts has independent coordinates.

# %%
torch.manual_seed(0)
parts = {}
for name, size in [("body", 4), ("isotopes", 2)]:
    decoder = mm.NormalLikelihood(mm.mlp(DIM, 32, size), mm.LearnedScale(size, start=0.5))
    parts[name] = mm.Modality(decoder, mm.encoder(size, 32, dim=DIM))
vae = mm.MultimodalVAE(parts, prior=mm.StandardNormal(DIM), fusion=mm.PoE())
net = mm.mlp(12, 64, DIM + DIM * DIM)


def guide(x=None, mask=None):
    batch = mm.Batch.of(x, mask)
    pyro.module("net", net)
    numbers, there = torch.zeros(batch.rows, 6), torch.zeros(batch.rows, 6)
    for name, columns in [("body", slice(0, 4)), ("isotopes", slice(4, 6))]:
        if name in batch:
            numbers[:, columns] = batch[name]
            there[:, columns] = batch.mask[name].reshape(batch.rows, -1).float()
    loc, factor = net(torch.cat([numbers, there], -1)).unsqueeze(1).split([DIM, DIM * DIM], -1)
    factor = factor.unflatten(-1, (DIM, DIM))
    factor = factor.tril(-1) + torch.diag_embed(nn.functional.softplus(factor.diagonal(dim1=-2, dim2=-1)) + 1e-4)
    with pyro.plate("data", batch.rows, dim=-2):
        pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=factor))


own_guide = mm.Pair(vae.model, guide)
history = mm.fit(vae, x_train, mask_train, **settings)
vae.requires_grad_(False)  # the decoders stay as they are: only the guide is new
history = mm.fit(own_guide, x_train, mask_train, **settings)

# %% [markdown]
# Both guides serve the same model, so what differs in the bounds is due to them alone. The log-likelihood is the same
# number estimated twice, and says that the comparison is fair.

# %%
torch.manual_seed(1)
for name, pair in [("product of experts", vae), ("our guide", own_guide)]:
    weights = mm.importance(pair, test, num_draws=1000)
    loglik = weights.raw.logsumexp(0) - torch.tensor(1000.0).log()
    print(f"{name:20} log p(x) {loglik.mean():.3f}, ELBO {weights.raw.mean():.3f} nats a bird")

# %% [markdown]
# ## The referee
#
# NUTS knows nothing of encoders. On a handful of birds it draws from the posterior itself, so both guides can be held
# against it. Two of these birds lack their isotopes.

# %%
chosen = torch.cat([test["isotopes"].isnan().any(1).nonzero()[:2, 0], torch.arange(10)])
few = {name: v[chosen] for name, v in test.items()}
pyro.set_rng_seed(2)
mcmc = MCMC(NUTS(vae.model), num_samples=int(200 * SCALE), warmup_steps=100, disable_progbar=True)
mcmc.run(few)
quality = mcmc.diagnostics()["z"]
nuts = mcmc.get_samples()["z"].squeeze(2)  # (draw, row, latent)
print(f"r-hat at most {quality['r_hat'].max():.3f}, effective draws at least {quality['n_eff'].min():.0f}")

both = {"product of experts": vae, "our guide": own_guide}
guides = {name: mm.importance(pair, few, num_draws=1000) for name, pair in both.items()}
for name, found in guides.items():
    z = found.latents["z"]
    shift = ((z.mean(0) - nuts.mean(0)) / nuts.std(0)).abs().mean()
    print(
        f"{name:20} means off by {shift:.2f} sd; sd {(z.std(0) / nuts.std(0)).mean():.2f} of NUTS's;"
        f" means off by {((found.mean() - nuts.mean(0)) / nuts.std(0)).abs().mean():.2f} sd once reweighted"
    )

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained", sharex=True, sharey=True)
clouds = {"NUTS": nuts, **{name: found.latents["z"][: len(nuts)] for name, found in guides.items()}}
for ax, (name, z) in zip(axes, clouds.items()):
    for row, color in [(0, "#c44e52"), (2, "#4c72b0"), (3, "#55a868")]:
        label = "isotopes missing" if row == 0 else None
        ax.plot(z[:, row, 0], z[:, row, 1], ".", markersize=3, alpha=0.4, color=color, label=label)
    ax.set(title=name, xlabel="z[0]")
axes[0].set_ylabel("z[1]")
legend = axes[0].legend(frameon=False, fontsize=8, markerscale=3)
# %% [markdown]
# Both guides come out a little too narrow, by 6 % (with three other seeds from 7 % too narrow to 2 % too wide), with
# means that are off by a seventh of a standard deviation (ours, up to a fifth) and a fifth (the product of experts).
# `mm.importance` weighs the very same draws by the model, and more than half of that distance goes away. So short a run
# of NUTS could not tell more: where it has as few as some 115 effective draws, its own means are uncertain by about 0.1
# standard deviations.
#
# ## Certificates
#
# The referee sees twelve birds; the certificate simulates hundreds, for each pattern of what may be missing. First our
# model with the library's guide, then the library's model with each of its two guides.

# %%
pairs = {
    "own model, product of experts": own_model,
    "library's model, product of experts": vae,
    "library's model, our guide": own_guide,
}
certificates = {name: mm.certify(pair, test, rows=300, progress=False) for name, pair in pairs.items()}
for name, certificate in certificates.items():
    print(f"{name:37} spread  in 90 %     gap  good k-hat  verdict")
    for row in certificate.rows:
        numbers = f"{row.dispersion:6.2f}  {row.coverage90:7.0%}  {row.gap:6.2f}  {row.good_khat:10.0%}"
        print(f"  given {' and '.join(row.given):29} {numbers}  {row.verdict} {row.because}")

figure, axes = plt.subplots(3, 1, figsize=(7, 5.6), layout="constrained", sharex=True)
for ax, (name, certificate) in zip(axes, certificates.items()):
    mm.plot_certificate(certificate, ax).set(title=name, xlabel="")
    ax.margins(y=0.25)
label = axes[-1].set_xlabel("spread of ranks (1 = calibrated, above: over-confident)")

# %% [markdown]
# What the certificate adds to the referee: it sees every pattern. With all six numbers our guide loses about 0.13 nats,
# where the product of experts loses 0.23 (with other seeds 0.08 to 0.18 for 0.12 to 0.25); given the body alone 0.30
# for 0.33, given the isotopes alone 0.04 for 0.06. A network of one's own has to learn from the indicators what to do
# without a body, from the fifth or so of the rows in which that occurred, where a product of experts simply leaves the
# missing expert out. Here it has learnt that. With your own guide, check the patterns that you are going to ask about.
#
# A verdict names the refused check that says most, and no guide is the posterior to the last digit. *Over-confident*
# with `spread of z[1]`: the true z[1] lies at the ends of its draws too often. *Under-confident* with `mean of log p(x |
# z)`: the draws explain the data less well than true codes do, as draws that are too wide would, in a direction that no
# single coordinate shows. *Mismatched* with the same: they do although, coordinate by coordinate, they are too narrow.
# The shape is wrong, as it is when a normal with independent coordinates stands for a posterior that is bent.
# *Mismatched* with `mean of log weight`: true codes weigh more than the draws do. Guide and posterior differ, and in no
# one direction.
