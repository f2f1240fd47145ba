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
# # Priors: what the model believes before it sees anything
#
# A model that draws a picture *and* its name from nothing has only its prior to go by. If the codes of the data lie in
# ten islands and the prior is one round hill, most draws fall into the sea between them, and the parts do not match.
# Five priors, everything else the same.

# %%
import os

import matplotlib.pyplot as plt
import pyro.distributions.transforms as T
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score
from sklearn.svm import SVC

import pyro_mmvae as mm

SCALE = float(os.environ.get("MMVAE_NOTEBOOK_SCALE", "1"))  # 4 trains four times as long

# %%
torch.manual_seed(0)
image, name = load_digits(return_X_y=True)
image = (torch.tensor(image).float().reshape(-1, 8, 8) + torch.rand(len(image), 8, 8)) / 17  # real numbers, 0 to 1
x = {"top": image[:, :4], "bottom": image[:, 4:], "name": torch.tensor(name)}
train, test = {k: v[:1400] for k, v in x.items()}, {k: v[1400:] for k, v in x.items()}
DIM = 6

# %% [markdown]
# A prior is a module that returns a distribution. The VampPrior is made of the posteriors of a few pseudo-rows, here
# started at training rows; the hierarchical one has a code above z with a guide of its own.


# %%
def flow(dim):
    return [t for _ in range(3) for t in (T.affine_coupling(dim, [48]), T.permute(dim, torch.randperm(dim)))]


def build(choice, parts, fusion):
    priors = {
        "normal": lambda: mm.StandardNormal(DIM),
        "mixture": lambda: mm.GaussianMixture(DIM, components=20),
        "VampPrior": lambda: mm.VampPrior(DIM, parts, fusion, {m: v[:40] for m, v in train.items()}),
        "flow": lambda: mm.FlowPrior(DIM, flow(DIM)),
        "hierarchical": lambda: mm.HierarchicalNormal(
            DIM, mm.StandardNormal(3), mm.encoder(3, 48, dim=DIM), mm.encoder(DIM, 48, dim=3)
        ),
    }
    return mm.MultimodalVAE(parts, priors[choice](), fusion)


vaes = {}
for choice in ["normal", "mixture", "VampPrior", "flow", "hierarchical"]:
    torch.manual_seed(1)
    vaes[choice] = build(choice, mm.guess_modalities(train, dim=DIM, hidden=96), mm.PoE(prior_expert=False))
    history = mm.fit(vaes[choice], train, epochs=int(25 * SCALE), lr=4e-3, progress=False)
    print(f"{choice:13} {history.loss[-1]:7.2f} nats a row in the last epoch")

# %% [markdown]
# ## Drawn from nothing
#
# Each column is one code drawn from the prior: the picture that it decodes to, and the name that it decodes to above.
# The judge is a classifier of pictures, trained on real ones, which knows no model: how often does it read in the
# picture what the name says? This is *joint coherence*.

# %%
judge = SVC().fit(torch.cat([train["top"], train["bottom"]], 1).flatten(1), train["name"])


@torch.no_grad()
def drawn(vae, number):
    z = vae.prior(None).sample((number,))
    picture = torch.cat([vae.modalities[half].decoder(z).mean for half in ("top", "bottom")], -2)
    return picture, vae.modalities["name"].decoder(z).logits.argmax(-1)


def gallery(pictures, titles, axes):
    for ax, picture, title in zip(axes, pictures, titles):
        ax.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=9, pad=2)


real = torch.cat([test["top"], test["bottom"]], 1)
print(f"the judge on real test pictures: {(judge.predict(real.flatten(1)) == test['name'].numpy()).mean():.0%}")
figure, axes = plt.subplots(len(vaes) + 1, 16, figsize=(10, 5), layout="constrained")
gallery(real, test["name"].tolist(), axes[-1])
axes[-1, 0].set_ylabel("real", rotation=0, ha="right", va="center")
for line, (choice, vae) in zip(axes, vaes.items()):
    torch.manual_seed(2)
    pictures, names = drawn(vae, 2000)
    gallery(pictures, names.tolist(), line)
    line[0].set_ylabel(choice, rotation=0, ha="right", va="center")
    print(f"{choice:13} coherence {(judge.predict(pictures.flatten(1)) == names.numpy()).mean():.0%}")

# %% [markdown]
# The round hill has draws that are between digits, and there picture and name disagree. Mixture, flow and hierarchy
# help a little, 77 to 81 % for 73 %. The VampPrior is far ahead in coherence with 92 % (with three other seeds 92 to 95
# %, where the fixed prior has 73 or 74 and the rest 76 to 82): its draws are codes of (learnt) pseudo-rows, and look
# like it, sharp and close to one of forty examples. That is the strength of it and the price.
#
# ## Does the better prior fit better?
#
# Pretty draws prove little. The number to compare is the log-likelihood of rows that were held out, on the same rows
# for all, with the standard error of the paired difference. It belongs to the models, and so their guides should have
# no part in it: by draws of theirs k-hat is good for 50 to 60 % of complete rows (last lines of the certificates
# below). `refined=True` looks for a proposal of its own for each row.

# %%
comparison = mm.compare(vaes, test, num_particles=500, refined=True)
print(comparison)

# %% [markdown]
# Here the VampPrior is ahead of the fixed prior by 0.77 nats of 51, nearly four standard errors, and the flow, 0.23 +-
# 0.15 behind, cannot be told apart from it. But these errors are those of 397 test rows, for five trainings as they
# happened to go. With three other seeds the VampPrior was level with the best, best, and last of all, 2 nats behind;
# the mixture, here level with the fixed prior, was 0.2 to 1.5 ahead of it. What held with all four seeds: the flow is
# 0.2 to 0.4 nats behind the best, and the fixed prior 0.8 to 1.5. **Train more than once before you rank.** And what
# changes the draws from nothing so visibly hardly matters once two halves of a picture have been seen. k-hat is good
# for 99 to 100 % of the rows, so that the numbers can be taken as they stand.
#
# ## Clusters
#
# The mixture's components are clusters that came with the model. Each is shown by the picture and the name that its
# middle decodes to, the heaviest first, with its weight.

# %%
with torch.no_grad():
    mixture = vaes["mixture"].prior()
    order = mixture.weights.argsort(descending=True)
    middle = mixture.components.mean[order]
    halves = [vaes["mixture"].modalities[half].decoder(middle).mean for half in ("top", "bottom")]
    names = vaes["mixture"].modalities["name"].decoder(middle).logits.argmax(-1)
figure, axes = plt.subplots(2, 10, figsize=(8, 2.4), layout="constrained")
titles = [f"{n}: {w:.0%}" for n, w in zip(names.tolist(), mixture.weights[order].tolist())]
gallery(torch.cat(halves, -2), titles, axes.flat)

# %% [markdown]
# Do they hold for pictures that come without a name? Every test picture goes to the component to which its code most
# likely belongs, and takes the name that the middle of that component decodes to. Not every prior has components, so
# for all five the codes are also split into ten clusters by k-means; the adjusted Rand index compares these with the
# true names (1 is perfect, 0 is chance). The names took part in training, so this is not clustering without labels; it
# asks whether the code keeps apart what the prior says is apart.

# %%
for choice, vae in vaes.items():
    with torch.no_grad():
        codes = vae.posterior(test, given=["top", "bottom"]).mean
        means = KMeans(10, n_init=5, random_state=0).fit_predict(codes)
        found = f"k-means {adjusted_rand_score(test['name'], means):.2f}"
        if choice in ("mixture", "VampPrior"):
            prior = vae.prior()
            own = prior.responsibilities(codes).argmax(-1)
            label = vae.modalities["name"].decoder(prior.components.mean).logits.argmax(-1)[own]
            found += f"; by the name of its own component {(label == test['name']).float().mean():.0%} right"
    print(f"{choice:13} {found}")

# %% [markdown]
# As clusters the mixture's components are modest: several share a digit, some digits blur into one another, and 59 % of
# the pictures get the right name (69 to 73 % with three other seeds). The pseudo-rows of the VampPrior, which start at
# real rows, name four in five rightly. Yet k-means finds about as much in the codes of the VampPrior (0.50) as in those
# of the mixture (0.54): what sets these two apart is less where the codes lie than how well the prior knows it. The
# codes of the flow are like theirs (0.51), those of the hierarchy and of the fixed prior fall into clusters a little
# less well (0.44 and 0.42). Other seeds move these figures by up to 0.1, and the fixed prior stays last or nearly so.
# Below, the test digits in two directions of their codes, one colour a digit.

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
for ax, choice in zip(axes, ["normal", "mixture", "flow"]):
    mm.plot_latent(vaes[choice], test, labels=test["name"], ax=ax)
    ax.set(title=choice)
    ax.get_legend().remove()

# %% [markdown]
# ## The certificate
#
# A better prior is no excuse for a worse posterior, so the last word is the guide's. The loss above was the ELBO of
# complete rows: the guide has never practised on one half alone.

# %%
for choice in ["normal", "VampPrior"]:
    certificate = mm.certify(vaes[choice], test, rows=250, num_draws=99, num_particles=300, progress=False)
    print(f"{choice}\n{certificate}\n")
ax = mm.plot_certificate(certificate)

# %% [markdown]
# Over-confident nearly everywhere (with other seeds, several subsets are called biased instead: the middle of the draws
# is off); and the VampPrior has not made the guide better: for complete rows its gap is the larger one. Both are worst
# for one half alone: a gap of 7.5 to 13 nats (up to 21 with other seeds) and a good k-hat for one row in ten or fewer.
# Nearly all of it is amortisation, what the encoders lose against the best normal of each row, and it shrinks as more
# is given beside the half, to one or two nats for complete rows: missing practice, above all (hide modalities in
# training, `mm.hide`, as in `01_first_fit`). For draws from nothing and for the comparison of complete rows the guide's
# answers for single halves play no part; for filling in halves, do not use these models as they are.
