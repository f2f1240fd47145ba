"""What is easily given by mistake, to every public function: one line that says what to give instead."""

import pyro.distributions as dist
import pytest
import torch
from cases import three, three_rows

import pyro_mmvae as mm

ROWS = 6
X = three_rows(ROWS)
JUDGE = {"body": lambda x: x[:, 0].long()}


class Both:
    """The programs of a model, and no more of it."""

    def __init__(self, vae):
        self.model, self.guide = (lambda *args: vae.model(*args)), (lambda *args: vae.guide(*args))


class Returning(mm.Objective):
    """A loss that returns what it was given."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def differentiable_loss(self, model, guide, x, mask=None):
        return self.value


class Without(mm.Fusion):
    """A product of experts without some axis."""

    def __init__(self, change):
        super().__init__()
        self.change, self.inner = change, mm.PoE()

    def fuse(self, experts):
        return self.change(self.inner.fuse(experts).base_dist)


def fits(vae, loss=None):
    return mm.fit(vae, X, loss=loss, epochs=1, progress=False)


def of_view(**names):
    return mm.Objective([lambda _: [mm.View(**names)]])


def remade(vae, **parts):
    given = {"prior": vae.prior, "fusion": vae.fusion, **parts}
    return mm.MultimodalVAE(dict(vae.modalities.items()), **given)


def plane(*shape):
    return dist.Normal(torch.zeros(*shape, dtype=torch.float64), 1.0)


# the line -> the call
MISUSE = {
    r"vaes is a list; give a dictionary, such as \{'poe': vae\}": lambda vae: mm.compare([vae], X),
    "vaes is a MultimodalVAE; give a dictionary": lambda vae: mm.compare(vae, X),
    "the class MultimodalVAE stands where a model": lambda vae: mm.compare({"a": mm.MultimodalVAE}, X),
    "num_particles is 'many'; give a whole number": lambda vae: mm.certify(vae, X, num_particles="many"),
    "num_particles is an object of pyro_mmvae.MultimodalVAE;": lambda vae: mm.log_likelihood(vae, X, num_particles=vae),
    "gap_rows is 0.5; give a whole number from 0 on": lambda vae: mm.certify(vae, X, gap_rows=0.5),
    "subsets is 0.5; give": lambda vae: mm.certify(vae, X, subsets=0.5),
    r"'body' stands where names are asked for; give a list, \['body'\]": lambda vae: mm.certify(
        vae, X, subsets=["body"]
    ),
    "num_draws is None; give": lambda vae: mm.leave_one_out(vae, X, num_draws=None),
    "num_draws is 0; give": lambda vae: mm.gaps(vae, X, num_draws=0),
    "steps is 0.5; give": lambda vae: mm.gaps(vae, X, steps=0.5),
    "chains is None; give": lambda vae: mm.annealed_log_likelihood(vae, X, chains=None),
    "temperatures is 0; give": lambda vae: mm.annealed_log_likelihood(vae, X, temperatures=0),
    "max_nuts_rows is None; give": lambda vae: mm.posterior_draws(vae, X, max_nuts_rows=None),
    "seconds is '9'; give": lambda vae: mm.posterior_draws(vae, X, seconds="9"),
    "num_draws is 0.5; give": lambda vae: mm.usage(vae, X, num_draws=0.5),
    "num_draws is 1; give a whole number from 2": lambda vae: mm.consistency(
        vae, X, given=["body"], more=["body", "label"], num_draws=1
    ),
    "num_particles is 10; give a list of numbers": lambda vae: mm.iwae_curve(vae, X, num_particles=10),
    "None stands where names are asked for": lambda vae: mm.sbc(vae, None, rows=20),
    "'body' stands where names": lambda vae: mm.consistency(vae, X, given="body", more=["body", "label"]),
    "'counts' stands where names": lambda vae: mm.latent_similarity(vae, X, query="counts", target=["body"]),
    "^None stands where names": lambda vae: mm.conditional_log_likelihood(vae, X, given=["body"], targets=None),
    "modality 'body' is in given and in targets, and what is given is not": lambda vae: mm.conditional_log_likelihood(
        vae, X, given=["body"], targets=["label", "body"]
    ),
    "a float stands where names": lambda vae: mm.to_arviz(vae, X, given=0.5),
    "the class list stands where names": lambda vae: mm.log_likelihood(mm.Pair(vae.model, vae.guide), X, given=list),
    "a Tensor stands where names": lambda vae: mm.impute(vae, X, given=torch.tensor(2)),
    "a Both can only be drawn from": lambda vae: mm.consistency(Both(vae), X, given=["body"], more=["body", "label"]),
    "no row has all of": lambda vae: mm.consistency(vae, None, given=["body"], more=["body", "label"]),
    "'z' of the latents is None; give": lambda vae: mm.impute(vae, X, latents={"z": None}),
    "unknown method an object of torch.Tensor;": lambda vae: mm.posterior_draws(vae, X, method=torch.ones(2, 2)),
    r"seed is tensor\(\[\[1., 1.\],; give a whole number": lambda vae: mm.certify(vae, X, seed=torch.ones(2, 2)),
    "no modality: x is empty; give": lambda vae: mm.hide({}, share=0.5),
    "no modality: x is empty; give at least": lambda vae: mm.hide(None, share=0.5),
    "no modality: x is empty; give at least one tensor": lambda vae: mm.from_nan(None),
    "num_draws is 0.5; give a whole": lambda vae: mm.predictive_similarity(
        vae, X, query=["body"], target="label", num_draws=0.5
    ),
    "modality 'label' is the target and in query, and would find itself": lambda vae: mm.predictive_similarity(
        vae, X, query=["body", "label"], target="label"
    ),
    "k is -1; give a whole number from 1 on": lambda vae: mm.retrieval(torch.eye(5), k=[-1]),
    "draws is of dtype <U1; give an array": lambda vae: mm.c2st("x", torch.ones(9, 2)),
    "folds is 1; give a whole number from 2 on": lambda vae: mm.c2st(torch.ones(9, 2), torch.ones(9, 2), folds=1),
    "permutations is -1; give": lambda vae: mm.c2st(torch.ones(9, 2), torch.ones(9, 2), permutations=-1),
    "level is 1.5; give a probability": lambda vae: mm.rank_ecdf(torch.rand(9), level=1.5),
    "level is 95; give a probability": lambda vae: mm.plot_ranks(mm.Calibration({"z[0]": torch.rand(9)}), level=95),
    "ridge is -1; give a number from 0 on": lambda vae: mm.Judge(X["body"], [0, 1] * 3, ridge=-1),
    "steps is 0; give a whole number from 1": lambda vae: mm.Judge(X["body"], [0, 1] * 3, steps=0),
    "hidden is 0; give a whole number from 1": lambda vae: mm.Judge(X["body"], [0, 1] * 3, hidden=(0,)),
    r"codes have shape \(6, 3\), test_codes \(6, 2\); give": lambda vae: mm.linear_probe(
        X["body"], [0, 1] * 3, X["body"][:, :2], [0, 1] * 3
    ),
    "subsets is empty; give at least one": lambda vae: mm.plot_khat(vae, X, subsets=[]),
    r"actual\['a'\] has shape \(1,\) for \(2,\) probabilities": lambda vae: mm.plot_coverage([0.5, 0.9], {"a": [0.5]}),
    "classifiers is a function; give a dictionary": lambda vae: mm.coherence(vae, X, [0] * ROWS, JUDGE["body"]),
    "classifiers is None; give a dictionary": lambda vae: mm.joint_coherence(vae, None),
    "visible is a Tensor; give a dictionary": lambda vae: mm.imputation_error(vae, X, visible=torch.ones(ROWS).bool()),
    "feature_names is a list; give a dictionary": lambda vae: mm.to_arviz(vae, X, feature_names=["a", "b", "c"]),
    "row_names is a str; give a list": lambda vae: mm.to_arviz(vae, X, row_names="abcdef"),
    "history is a list; give a History, from mm.fit": lambda vae: mm.plot_history([1.0, 0.5]),
    "certificate is a MultimodalVAE; give a Certificate": mm.plot_certificate,
    "comparison is a dict; give a Comparison": lambda vae: mm.plot_compare({"a": vae}),
    "calibration is None; give a Calibration": lambda vae: mm.plot_ranks(None),
    "actual is a list; give a dictionary": lambda vae: mm.plot_coverage([0.5], [0.5]),
    "^None stands where names are": lambda vae: mm.plot_khat(vae, X, subsets=None),
    "show is a builtin_function_or_method; give a dict": lambda vae: mm.plot_reconstructions(vae, X, show=repr),
    "ax is a list; give one Axes": lambda vae: mm.plot_missingness(X, ax=[None]),
    "the class RealColumn stands where a column": lambda vae: mm.outputs_of([mm.RealColumn]),
    "columns is a RealColumn; give a list": lambda vae: mm.outputs_of(mm.RealColumn()),
    "an encoder has no sizes; give": lambda vae: mm.encoder(dim=2),
    "shape is None; give": lambda vae: mm.conv_trunk(None),
    r"shape is \(28, 28\); give \(channel, height, width\)": lambda vae: mm.residual_decoder(2, (28, 28)),
    r"Returning.differentiable_loss returned None; it must return one number": lambda vae: fits(vae, Returning(None)),
    r"returned a tensor of shape \(6,\); it must": lambda vae: fits(vae, Returning(torch.zeros(6))),
    "unknown modality 'bdy'; this model has body, label, counts": lambda vae: fits(vae, of_view(given=["bdy"])),
    "unknown modality 'bod'; this model has": lambda vae: fits(vae, of_view(targets=["bod"])),
    r"'body' stands where names are asked for; give a list": lambda vae: fits(vae, of_view(given="body")),
    "passes is .*; give a list of functions": lambda vae: mm.Objective(mm.objectives.unimodal),
    "passes is an object of builtins.list; give": lambda vae: mm.Objective([mm.View(["body"])]),
    "prior is a distribution, .*; give a function": lambda vae: remade(vae, prior=plane(2).to_event(1)),
    "auxiliary_prior names 'body', which is no": lambda vae: remade(vae, auxiliary_prior={"body": vae.prior}),
    r"the fusion returned batch \(.,\) and event \(2,\); for these rows it must": lambda vae: fits(
        remade(vae, fusion=Without(lambda q: dist.Normal(q.loc.squeeze(1), 1.0).to_event(1)))
    ),
    r"the fusion returned batch \(., 1, 2\) and event \(\); .* add .to_event": lambda vae: fits(
        remade(vae, fusion=Without(lambda q: dist.Normal(q.loc, 1.0)))
    ),
    r"shape\[0\] is 0.5; give a whole number": lambda vae: mm.conv_encoder((0.5, 28, 28), dim=2),
}


@pytest.mark.parametrize("line", MISUSE)
def test_one_line_says_what_to_give(line):
    with pytest.raises(ValueError, match=line) as caught:
        MISUSE[line](three())
    assert "\n" not in str(caught.value)
