"""The main command: what it prints, what it writes, what it refuses."""

import json
import sys

import numpy as np
import pytest
import torch

import pyro_mmvae as mm
from pyro_mmvae import __main__ as command
from pyro_mmvae import datasets, demo


@pytest.fixture
def arrays(tmp_path, single):
    random = np.random.default_rng(0)
    kind = random.integers(0, 3, 120)
    size = 10.0 * kind[:, None] + random.normal(size=(120, 4))
    size[::7], size[3, 2] = np.nan, np.nan
    path = tmp_path / "own.npz"
    np.savez(path, kind=kind, size=size, spots=random.poisson(3 + 3 * kind[:, None], (120, 2)))
    return path


def test_own_arrays_in_table_and_folder_out(arrays, tmp_path, capsys):
    out = tmp_path / "out"
    assert command.main(["--data", str(arrays), "--epochs", "3", "--out", str(out), "--prior", "normal"]) == 0
    printed = capsys.readouterr().out
    for line in ("kind", "kind + size + spots", "good k-hat", "refined row by row", "Wrote figure.png"):
        assert line in printed
    report = json.loads((out / "report.json").read_text())
    assert len(report["subsets"]) == 7 and len(report["loss"]) == 3
    assert all(row["gain"] > -0.1 and row["refined_good_khat"] >= row["good_khat"] for row in report["subsets"])
    assert report["options"]["prior"] == "normal" and report["options"]["hide"] == 0.3
    state = torch.load(out / "model.pt", weights_only=True)["state"]
    assert all(value.isfinite().all() for value in state.values())
    assert (out / "figure.png").read_bytes()[:4] == b"\x89PNG" and (out / "posterior.nc").stat().st_size > 1000


def test_one_seed_gives_one_report(arrays, tmp_path, capsys):
    reports = []
    for folder in ("a", "b"):
        assert (
            command.main(["--data", str(arrays), "--epochs", "2", "--seed", "3", "--out", str(tmp_path / folder)]) == 0
        )
        report = json.loads((tmp_path / folder / "report.json").read_text())
        reports.append((report["subsets"], report["loss"]))
    assert reports[0] == reports[1]


@pytest.mark.parametrize("argv", [["--hide", "1.0"], ["--epochs", "0"], ["--fusion", "glue"]])
def test_bad_options_are_refused(argv, capsys):
    with pytest.raises(SystemExit):
        command.main(argv)
    assert argv[0] in capsys.readouterr().err


def test_a_file_that_is_none_is_one_line(tmp_path, capsys):
    path = tmp_path / "broken.npz"
    path.write_bytes(b"PK not a zip")
    assert command.main(["--data", str(path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "broken.npz" in error and error.count("\n") == 1
    assert command.main(["--data", str(tmp_path / "none.npz"), "--out", str(tmp_path / "out")]) == 1


def test_a_missing_extra_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert command.main(["--out", str(tmp_path / "out")]) == 1
    assert (
        capsys.readouterr().err
        == "error: the pictures of digits come with scikit-learn: pip install 'pyro_mmvae[demo]'\n"
    )


def test_the_pairs_are_of_one_digit_and_the_test_voices_unheard(single):
    train, test = datasets.digits_and_voices(copies=1)
    voices = datasets.load("spoken_digits_small")
    grey = {picture.tobytes(): int(label) for picture, label in zip(voices["logmel"] // 17, voices["label"])}
    for part in (train, test):
        spoken = [grey[picture.byte().numpy().tobytes()] for picture in part["speech"]]
        assert spoken == part["label"].tolist()
        assert part["image"].min() == 0 and part["image"].max() == 16 and part["speech"].max() == 15
    heard = {p.byte().numpy().tobytes() for p in train["speech"]}
    unheard = {p.tobytes() for p in (voices["logmel"] // 17)[voices["is_test"].astype(bool)]}
    assert not heard & unheard and {p.byte().numpy().tobytes() for p in test["speech"]} == unheard
    assert not {p.numpy().tobytes() for p in train["image"]} & {p.numpy().tobytes() for p in test["image"]}


def test_the_digits_are_learnt(single):
    """A quarter of the command's epochs: well above chance, near the full run's figures."""
    torch.manual_seed(0)
    train, test = datasets.digits_and_voices()
    vae = demo.build(demo.digit_modalities(), "mixture", "mopoe")
    mm.fit(vae, *mm.hide(train, share=0.3), epochs=25, lr=2e-3, progress=False)
    report = demo.digit_report(vae, train, test)
    assert report["label from image"] > 0.9
    assert report["label from an unheard voice"] > 0.85
    assert report["image from an unheard voice, judged by a classifier"] > 0.75


def test_guessed_modalities_fit_and_fill(single):
    x = {
        "picture": torch.randint(0, 17, (60, 4, 4)),
        "label": torch.randint(0, 3, (60,)).float(),
        "table": torch.randn(60, 4) * 100 + 5,
        "scalar": torch.randn(60),
        "counts": torch.randint(0, 50, (60, 5)),
        "marks": torch.randint(0, 2, (60, 6)),
    }
    x["label"][4], x["table"][3, 1] = torch.nan, torch.nan
    parts = mm.guess_modalities(x, dim=2)
    kinds = {name: type(part.decoder).__name__.removesuffix("Likelihood") for name, part in parts.items()}
    assert list(kinds.values()) == ["Binomial", "Categorical", "Normal", "Normal", "NegativeBinomial", "Bernoulli"]
    vae = mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
    history = mm.fit(vae, x, epochs=3, progress=False)
    assert history.loss[-1] < history.loss[0]
    filled = mm.impute(vae, x, num_draws=50)
    assert {name: value.shape[1:] for name, value in filled.items()} == {name: value.shape for name, value in x.items()}
    assert abs(filled["table"][:, 3, 1].mean() - 5) < 100 and filled["label"][:, 4].max() <= 2


def test_a_guessed_encoder_tells_a_hole_from_a_zero():
    x = {"table": torch.randn(40, 3) + 2, "picture": torch.randint(0, 17, (40, 4, 4)).float()}
    x["table"][0, 1], x["picture"][0, 0, 0] = 0.0, 0.0
    for value in x.values():
        value[1] = value[0]
    x["table"][1, 1], x["picture"][1, 0, 0] = torch.nan, torch.nan
    vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
    for name in x:
        mean = vae.posterior({name: x[name]}).mean
        assert (mean[0] - mean[1]).abs().max() > 1e-4
    history = mm.fit(vae, x, epochs=3, progress=False)
    assert history.loss[-1] < history.loss[0]
