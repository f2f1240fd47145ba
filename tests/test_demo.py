"""The main command: what it prints, what it writes, what it refuses."""

import json
import sys

import numpy as np
import pytest
import torch

import pyro_mmvae as mm
from pyro_mmvae import __main__ as command
from pyro_mmvae import datasets, demo, demo_figure


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
    subsets = report["subsets"]
    assert all(row["refined_good_khat"] >= row["good_khat"] for row in subsets)
    # weights of the guide are t nats too high in one row of e^t, and on the whole they are too low
    assert all(row["gain"] * row["rows"] > -7 for row in subsets) and sum(row["gain"] for row in subsets) > 0
    assert [row["rows"] for row in subsets] == [24, 21, 24, 21, 24, 21, 21]
    assert report["options"]["prior"] == "normal" and report["options"]["hide"] == 0.3
    state = torch.load(out / "model.pt", weights_only=True)["state"]
    assert all(value.isfinite().all() for value in state.values())
    assert (out / "figure.png").read_bytes()[:4] == b"\x89PNG" and (out / "posterior.nc").stat().st_size > 1000


def holed(rows=12):
    """A model of two modalities, and rows of which every third lacks one, every other third the other."""
    x = {"size": torch.randn(rows, 2), "kind": (torch.arange(rows) % 2).double()}
    x["size"][::3], x["kind"][1::3] = torch.nan, torch.nan
    return mm.MultimodalVAE(mm.guess_modalities(x, dim=2, hidden=8), mm.StandardNormal(2), mm.PoE()), x


def test_rows_that_lack_a_modality_neither_stop_the_picture_nor_are_in_it(tmp_path, monkeypatch):
    (vae, x), shown = holed(), []
    for name in ("plot_cross_modal", "plot_reconstructions"):
        draw = getattr(demo_figure, name)
        monkeypatch.setattr(
            demo_figure, name, lambda vae, x, ax, draw=draw: shown.append((draw, x)) or draw(vae, x, ax=ax)
        )
    demo_figure.cross_modal_figure(vae, x, tmp_path / "some.png")
    draw, rows = shown.pop()
    assert draw is mm.plot_cross_modal and torch.equal(rows["size"], x["size"][[2, 5]])  # of either kind
    lacking = {name: value[torch.arange(12) % 3 < 2] for name, value in x.items()}
    demo_figure.cross_modal_figure(vae, lacking, tmp_path / "none.png")
    draw, rows = shown.pop()
    assert draw is mm.plot_reconstructions and len(rows["size"]) == 8
    assert (tmp_path / "some.png").exists() and (tmp_path / "none.png").exists()


def test_the_table_is_of_the_rows_that_have_all_of_a_subset(capsys):
    """Rows with nothing of it have log p = 0 and the best k-hat, which say nothing of the model."""
    vae, x = holed(40)
    torch.manual_seed(0)
    table = demo.subset_table(vae, x, num_particles=100)
    assert [(row.given, row.rows) for row in table] == [(("size",), 26), (("kind",), 27), (("size", "kind"), 13)]
    torch.manual_seed(0)
    found = mm.log_likelihood(vae, {"size": x["size"][torch.arange(40) % 3 > 0]}, num_particles=100)
    assert table[0].log_likelihood == pytest.approx(float(found.value.mean()), abs=1e-6)
    assert table[0].se == pytest.approx(float(found.value.std()) / 26**0.5, abs=1e-6)
    apart = {name: value[torch.arange(40) % 3 < 2] for name, value in x.items()}
    assert [row.given for row in demo.subset_table(vae, apart, num_particles=100)] == [("size",), ("kind",)]


def test_long_names_leave_the_table_its_columns(capsys):
    given = [(f"a long name of a modality, number {i}",) for i in range(8)]
    rows = [demo.SubsetRow(s, 5, -12.3, 0.1, 0.5, -0.001, 1.0) for s in [*given, tuple(name for (name,) in given)]]
    command.show(rows, {})
    head, *lines = capsys.readouterr().out.splitlines()[4:14]
    assert len({len(line) for line in [head, *lines]}) == 1 and len(head) < 100
    assert all(line.split()[-5:] == ["-12.30", "0.10", "50%", "0.00", "100%"] for line in lines)


def test_the_report_is_json_to_everybody(tmp_path, single):
    """One held-out row has no standard error."""
    np.savez(tmp_path / "few.npz", size=np.random.default_rng(0).normal(size=(5, 2)))
    assert command.main(["--data", str(tmp_path / "few.npz"), "--epochs", "1", "--out", str(tmp_path)]) == 0
    strict = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert strict["subsets"][0]["rows"] == 1 and strict["subsets"][0]["se"] is None


def test_one_row_is_not_split(tmp_path, capsys):
    np.savez(tmp_path / "one.npz", size=np.zeros((1, 2)))
    assert command.main(["--data", str(tmp_path / "one.npz"), "--out", str(tmp_path / "out")]) == 1
    assert "x has 1 row; give at least two" in capsys.readouterr().err


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


@pytest.mark.parametrize("damage", ["empty", "cut", "overwritten", "one array"])
def test_a_damaged_file_is_one_line(arrays, damage, tmp_path, capsys):
    whole = arrays.read_bytes()
    middle = len(whole) // 2
    if damage == "one array":
        with arrays.open("wb") as file:
            np.save(file, np.zeros((4, 2)))
    else:
        kept = {"empty": b"", "cut": whole[:middle], "overwritten": whole[:middle] + b"x" * 64 + whole[middle + 64 :]}
        arrays.write_bytes(kept[damage])
    assert command.main(["--data", str(arrays), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {arrays}: not a readable .npz file") and error.count("\n") == 1


def test_numbers_that_single_precision_cannot_tell_apart_are_named_by_the_command_too(single, tmp_path, capsys):
    """And not rounded on the way to where they would be."""
    path, values = tmp_path / "own.npz", 1.7e9 + np.random.default_rng(0).normal(size=(20, 2))
    np.savez(path, time=values, id=np.array([2**40 + 1] * 20))
    read = command.read(path)
    assert np.array_equal(read["time"].numpy(), values) and read["id"].tolist() == [2**40 + 1] * 20
    np.savez(path, time=values)
    with pytest.warns(UserWarning, match=r"'time' has in column 0 numbers around 1.7e\+09 that differ by"):
        assert command.main(["--data", str(path), "--epochs", "1", "--out", str(tmp_path / "out")]) == 0
    np.savez(path, mass=1e290 * values)
    assert command.main(["--data", str(path), "--epochs", "1", "--out", str(tmp_path / "out")]) == 1
    assert (
        "'mass' has in column 0 numbers up to 1.7e+299, whose squares torch.float32 lacks; rescale it"
        in capsys.readouterr().err
    )


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
