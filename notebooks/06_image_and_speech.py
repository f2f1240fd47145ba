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
# # Image and speech: draw what you hear
#
# A digit can be written, spoken and named. Here is one model of all three; then somebody speaks whom it has never
# heard, and it draws.
#
# Two things to know before you are impressed. The pictures are scikit-learn's handwritten digits and the clips were
# spoken by a program, so no picture and no clip ever belonged together: **the pairing is ours**, by digit and otherwise
# by chance. And **the voices are synthetic**, 103 voices of two programs: nothing that is learnt here
# transfers to real speakers.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import torch

import pyro_mmvae as mm
from pyro_mmvae.datasets import digits_and_voices, load
from pyro_mmvae.demo import digit_modalities, digit_report

SCALE = float(os.environ.get("MMVAE_NOTEBOOK_SCALE", "1"))  # 3 trains three times as long
DIM = 16

train, test = digits_and_voices(copies=2)
for name, value in train.items():
    print(f"{name:7} {tuple(value.shape)}, values {value.min():g} to {value.max():g}")

# %% [markdown]
# These are plain arrays with one row a digit; put your own there. `image` counts ink from 0 to 16 in 8 x 8 cells,
# `speech` is a spectrogram of 32 mel bands by 32 moments in 16 grey levels, `label` is a whole number. `test` holds
# pictures that are not in `train`, and every clip of 17 voices of which not one clip is in `train`.
#
# To make it learn what to do when something is missing, a third of all modalities is hidden during training.

# %%
_, mask = mm.hide(train, share=1 / 3)
figure, axes = plt.subplots(2, 10, figsize=(9, 2.1), layout="constrained")
for digit in range(10):
    row = (train["label"] == digit).nonzero()[0, 0]
    mm.plot_entry(train["image"][row], axes[0, digit])
    mm.plot_entry(train["speech"][row].flip(0), axes[1, digit])

# %% [markdown]
# The parts: `digit_modalities` gives the picture and the spectrogram a binomial likelihood (grey levels are counts with
# a top), the label a categorical one, and each an encoder of two layers. The spectrogram has 16 times as many entries
# as the picture and would own the code; its likelihood weighs 0.3 in the loss. The prior is a mixture of twenty
# normals, because digits come in kinds; the posterior is MoPoE, which averages over what a listener might have
# attended to.

# %%
torch.manual_seed(0)
vae = mm.MultimodalVAE(digit_modalities(DIM), mm.GaussianMixture(DIM, components=20), mm.MoPoE())
history = mm.fit(vae, train, mask, epochs=max(1, int(30 * SCALE)), lr=2e-3, progress=False)
ax = mm.plot_history(history)

# %% [markdown]
# ## Draw what you hear
#
# One clip of each digit, each by another voice never heard in training. Below it what the model draws: three draws of
# the code z given the clip, and the picture that each stands for. The last line is the mean over 200 draws, which
# blurs where the model is of two minds.

# %%
voices = load("spoken_digits_small")
unheard = voices["is_test"].astype(bool)
speaker = np.repeat(voices["voice"][unheard], 2)  # of each test row
present = np.unique(speaker)
rows = [int(np.flatnonzero((test["label"].numpy() == d) & (speaker == present[d]))[0]) for d in range(10)]
heard = {"speech": test["speech"][rows]}

torch.manual_seed(1)
lines = {"heard": heard["speech"].flip(1)}
lines |= {f"drawn {k + 1}": mm.predict(vae, heard)["image"] for k in range(3)}
lines |= {"mean": mm.predict(vae, heard, num_draws=200)["image"]}
figure, axes = plt.subplots(len(lines), 10, figsize=(9, 4.8), layout="constrained")
for line, (title, pictures) in zip(axes, lines.items()):
    for ax, picture in zip(line, pictures):
        mm.plot_entry(picture, ax)
    line[0].set_ylabel(title, rotation=0, ha="right", va="center")
for ax, row in zip(axes[0], rows):
    ax.set_title(f'"{test["label"][row]}"', fontsize=10)

# %% [markdown]
# Is it what was said? We ask a judge who knows nothing of the model: a support vector machine that was trained on real
# pictures. The last line says how often the judge is right on real pictures of the test set, which is the ceiling.

# %%
torch.manual_seed(2)
for question, share in digit_report(vae, train, test).items():
    print(f"{question:52} {share:6.1%}")

# %% [markdown]
# One number over all voices hides that some are harder than others. A voice that the model knows (other digits of it,
# and this clip too, were in the training set) is the comparison for those that it does not know.


# %%
def understood(x):
    votes = mm.translate(vae, {"speech": x["speech"]}, to="label", num_draws=50)
    return (votes.mode(0).values == x["label"]).numpy()


right, known = understood({k: v[::2] for k, v in test.items()}), understood(train).mean()  # every clip is there twice
by_voice = sorted((right[speaker[::2] == v].mean(), str(voices["voice_names"][v])) for v in present)

figure, ax = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
ax.barh([name.split(":")[1] for _, name in by_voice], [share for share, _ in by_voice], color="#4c72b0")
ax.axvline(known, color="#c44e52")
ax.set(xlabel="share of digits understood", title=f"Voices never heard; red: heard in training, {known:.0%}")
ax.tick_params(axis="y", labelsize=7)
print(
    f"unheard voices {right.mean():.1%}, the hardest of them, {by_voice[0][1]}, {by_voice[0][0]:.0%}; heard ones {known:.1%}"
)

# %% [markdown]
# ## How far can the posterior be trusted?

# %%
few = {name: value[::2] for name, value in test.items()}
certificate = mm.certify(vae, few, rows=150, num_draws=99, num_particles=100, progress=False)
print(certificate)
ax = mm.plot_certificate(certificate)

# %% [markdown]
# Badly, and you have seen it: for one clip the three drawings are all but the same picture, where ten people who hear
# "three" would write ten threes. The certificate says *over-confident* for every subset (with one of three other seeds,
# *biased* for two of them); given a voice alone, the 90 % intervals for z hold the truth fewer than 40 times in 100.
#
# Why? MoPoE draws the code from one of several products of experts, and whichever it is, that one is asked to explain
# all that is there. A listener who is trained by pictures that she cannot see learns to bet on one typical picture, and
# not to say how many would do. Hence also the line for `label`: ten equally likely names have log p of -2.3, and here
# -7.2 is reported (-6.7 to -7.5 with other seeds), with a good k-hat for 1 to 4 % of the rows. That is what a low k-hat
# is for: the number is a lower bound, and a loose one.
#
# So use this model to name and to draw, and do not take its spread for uncertainty. `02_guides` shows fusions that are
# better calibrated, `10_published_methods` that products of experts draw less well from a voice, by draws of their own
# guides, and `09_diagnostics` draws that are repaired row by row.
