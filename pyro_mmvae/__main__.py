"""`python -m pyro_mmvae`: train on written, spoken and named digits, or on arrays of your own, and report."""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from pyro_mmvae import __version__, demo
from pyro_mmvae.arrays import percent, with_axes
from pyro_mmvae.data import Batch
from pyro_mmvae.datasets import digits_and_voices
from pyro_mmvae.demo_figure import cross_modal_figure
from pyro_mmvae.diagnostics.patterns import titles
from pyro_mmvae.export import to_arviz
from pyro_mmvae.guess import guess_modalities
from pyro_mmvae.holes import hide
from pyro_mmvae.training import fit
from pyro_mmvae.vae import MultimodalVAE


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pyro_mmvae",
        description="Trains a multimodal VAE on written, spoken and named digits (or on your arrays), prints how likely"
        " held-out rows are for every subset of the modalities and how far to trust that, and writes a folder with"
        " figure.png, posterior.nc, model.pt and report.json.",
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="arrays by modality name, rows first, NaN = missing; of more than"
        " five, subsets are the single ones and all",
    )
    add("--prior", choices=demo.PRIORS, default="mixture", help="prior of the shared code (default: %(default)s)")
    add("--fusion", choices=demo.FUSIONS, default="mopoe", help="how experts are combined (default: %(default)s)")
    add("--epochs", type=int, default=100, help="passes over the data (default: %(default)s)")
    add("--hide", type=float, default=0.3, help="share of the modalities hidden in training (default: %(default)s)")
    add("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    add("--out", type=Path, default=Path("pyro_mmvae_out"), help="folder to write (default: %(default)s)")
    options = parser.parse_args(argv)
    if not 0 <= options.hide < 1:
        parser.error(f"--hide is {options.hide}; give a share from 0 to below 1")
    if options.epochs < 1:
        parser.error(f"--epochs is {options.epochs}; give 1 or more")
    return options


def read(path: Path) -> dict[str, torch.Tensor]:
    """The arrays of a file, checked."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, TypeError, BadZipFile, zlib.error) as error:  # TypeError: of one .npy array
        reason = "it holds one array; see numpy.savez" if isinstance(error, TypeError) else error
        raise ValueError(f"{path}: not a readable .npz file of plain arrays ({reason})") from None
    batch = Batch.of(found)
    values = {name: value if value.dtype == torch.float32 else value.double() for name, value in batch.items()}
    return {k: torch.where(with_axes(batch.mask[k], value.dim()), value, torch.nan) for k, value in values.items()}


def main(argv: list[str] | None = None) -> int:
    """Runs the demonstration; returns the exit status."""
    options = arguments(argv)
    try:
        return run(options)
    except (ValueError, ImportError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Trains, measures, prints and writes."""
    started = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    own = options.data is not None
    train, test = demo.split(read(options.data), options.seed) if own else digits_and_voices(seed=options.seed)
    modalities = guess_modalities(train, demo.DIM) if own else demo.digit_modalities()
    vae = demo.build(modalities, options.prior, options.fusion)
    x, mask = hide(train, share=options.hide, seed=options.seed)
    history = fit(vae, x, mask, epochs=options.epochs, lr=2e-3, seed=options.seed)
    torch.manual_seed(options.seed)
    table = demo.subset_table(vae, test, num_particles=1000)
    digits = {} if own else demo.digit_report(vae, train, test)
    show(table, digits)
    report: dict[str, Any] = {
        "version": __version__,
        "torch": torch.__version__,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "subsets": [{k: None if v != v else v for k, v in row._asdict().items()} for row in table],  # JSON has no NaN
        "digits": digits,
        "loss": history.loss,
    }
    write(options.out, vae, {name: value[:100] for name, value in test.items()}, report, started)
    return 0


def write(out: Path, vae: MultimodalVAE, few: dict[str, torch.Tensor], report: dict[str, Any], started: float) -> None:
    """Writes the model, what it says of a few rows, and the report."""
    vae.save(out / "model.pt")
    to_arviz(vae, few).to_netcdf(str(out / "posterior.nc"))
    cross_modal_figure(vae, few, out / "figure.png")
    report["seconds"] = time.perf_counter() - started
    (out / "report.json").write_text(json.dumps(report, indent=2))
    print(f"\nWrote figure.png, posterior.nc, model.pt and report.json to {out} ({report['seconds']:.0f} s).")


def show(table: list[demo.SubsetRow], digits: dict[str, float]) -> None:
    """Prints the two tables."""
    names = titles([row.given for row in table])
    width = max(8, *map(len, names))
    print("\nHeld-out log-likelihood of subsets of the modalities, and how far to trust it:\n")
    print(f"  {'':{width}}  {'':>6}  {'by the guide':^29}   {'refined row by row':^20}".rstrip())
    print(f"  {'observed':{width}}  {'rows':>6}  {'log p(x_S)':>10}  {'+-':>5}  good k-hat   {'gain':>8}  good k-hat")
    for given, row in zip(names, table):
        print(
            f"  {given:{width}}  {row.rows:6d}  {row.log_likelihood:10.2f}  {row.se:5.2f}  {percent(row.good_khat):>10}"
            f"   {row.gain:z8.2f}  {percent(row.refined_good_khat):>10}"
        )
    print(
        "\n  Rows: those that have all of the subset. Nats a row, by importance sampling with 1000 draws; +- one"
        "\n  standard error over rows. Good k-hat: share of rows for which these draws can be trusted; elsewhere"
        "\n  log p(x_S) is a lower bound. The gain is what a normal refined for each row, and draws of the prior, find"
        f"\n  more (mm.gaps, on the first {demo.REFINED} rows at most)."
    )
    if digits:
        print("\nHeld-out pictures, and voices never heard in training:\n")
        for name, value in digits.items():
            print(f"  {name:52} {value:6.1%}")


if __name__ == "__main__":
    sys.exit(main())
