"""What a certificate holds, and how it reads."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from pyro_mmvae.arrays import counted, percent
from pyro_mmvae.diagnostics.patterns import column, titles
from pyro_mmvae.diagnostics.ranks import shown_p

LEVEL = 0.01
"""The probability with which a correct guide is refused for one subset."""
WIDTH = 22
"""Of the column of subsets."""


class SubsetCertificate(NamedTuple):
    """What is known of q(z | x_S) for one subset S.

    Attributes:
        given: S.
        verdict: "pass", "over-confident", "under-confident", "biased", "mismatched" if wrong in none of these
            directions, or "not enough draws" from the model: fewer than 100 simulated rows.
        because: the check that decided.
        p: the smallest p-value of all checks of calibration, times their number.
        sbc, sbc_p: largest distance between the ECDF of the ranks of the latents, of log p(x_S | z) and of the log
            weight, and that of the uniform distribution, and the smallest p-value of their checks, times their number.
        tarp, tarp_p: the same of the distances to a random point.
        dispersion: 12 times the variance of the ranks of the latents; 1 is calibrated, above over-confident.
        coverage50, coverage90: share of simulated truths inside the central 50 % and 90 % intervals.
        rows: rows of the data that have all of S.
        log_likelihood, se: mean log p(x_S) of those rows by importance sampling, and its standard error, in nats.
        gap: log_likelihood - ELBO, the mean KL from guide to posterior, nats a row.
        approximation, amortisation: what of the gap no normal posterior could close, and what the encoder loses against
            the best one, nats a row; on the first rows alone. See `mm.gaps`.
        good_khat: share of rows with a k-hat below its limit.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> row = mm.certify(vae, x, subsets=[["a"]], rows=50, gap_rows=0, progress=False).rows[0]
        >>> row.given, row.verdict
        (('a',), 'not enough draws')
    """

    given: tuple[str, ...]
    verdict: str
    because: str
    p: float
    sbc: float
    sbc_p: float
    tarp: float
    tarp_p: float
    dispersion: float
    coverage50: float
    coverage90: float
    rows: int
    log_likelihood: float
    se: float
    gap: float
    approximation: float
    amortisation: float
    good_khat: float


@dataclass(repr=False)
class Certificate:
    """One `SubsetCertificate` a subset; `print` shows a table, `mm.plot_certificate` a picture.

    Attributes:
        rows: the subsets.
        simulated: rows simulated for each.
        num_draws: draws from the guide for each of them.
        num_particles: draws from the guide for each row of the data.
        gap_rows: rows of the data on which the gap was taken apart.

    Example:
        >>> import torch, pyro_mmvae as mm
        >>> x = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
        >>> vae = mm.MultimodalVAE(mm.guess_modalities(x, dim=2), mm.StandardNormal(2), mm.PoE())
        >>> certificate = mm.certify(vae, x, subsets=[["a"]], rows=50, gap_rows=0, progress=False)
        >>> certificate.to_xarray()["verdict"].item()
        'not enough draws'
    """

    rows: list[SubsetCertificate]
    simulated: int
    num_draws: int
    num_particles: int
    gap_rows: int

    def __repr__(self) -> str:
        return "\n".join([*self._calibration(), "", *self._data()])

    def _calibration(self) -> list[str]:
        names = self._titles()
        width, word = len(names[0]), max([7, *(len(row.verdict) for row in self.rows)])
        head = f"{'given':{width}}  {'verdict':{word}}  {'SBC':>5} {'p':>6}  {'TARP':>5} {'p':>6}  spread  50 % 90 %"
        lines = []
        for given, r in zip(names, self.rows):
            ranks = f"{r.sbc:5.3f} {shown_p(r.sbc_p)}  {r.tarp:5.3f} {shown_p(r.tarp_p)}  {r.dispersion:6.2f}"
            covered = f"{r.coverage50:4.0%} {r.coverage90:4.0%}"
            lines.append(f"{given}  {r.verdict:{word}}  {ranks}  {covered}  {r.because}".rstrip())
        return [
            f"Is q(z | x_S) the model's posterior? {self.simulated} rows simulated from the model,"
            f" {counted(self.num_draws, 'draw')} from the guide for each",
            "",
            f"{head}  decided by",
            *lines,
            "",
            "SBC: the true codes, log p(x_S | z) and the log weight log p(x_S, z) - log q(z | x_S) there, ranked among",
            "the draws; TARP: the same of distances to a random point. Both as the largest distance of an ECDF to the",
            "diagonal, p-values corrected for the number of tests. Spread: 12 var(rank), 1 if calibrated, above 1",
            "over-confident. 50 %, 90 %: coverage of central intervals. Over-confident: draws too close together;",
            "under-confident: too far apart, or a poorer fit to x than true codes are; biased: off to one side;",
            "mismatched: wrong in no one direction, as in correlations or in shape, or too sure of some rows and not",
            f"sure enough of others. A correct guide is refused with probability {LEVEL:g} a subset. How far off a",
            "refused one is, coverage and gap say.",
        ]

    def _data(self) -> list[str]:
        names, some = self._titles(), [row for row in self.rows if row.rows]
        split = (("approximation", 13), ("amortisation", 12)) if self.gap_rows else ()
        columns = [
            column(["log p(x_S)", *(f"{row.log_likelihood:z.2f}" for row in some)], 11),
            column(["+-", *(f"{row.se:.2f}" for row in some)], 5),
            column(["gap", *(f"{row.gap:z.3f}" for row in some)], 7),
            *(column([name, *(f"{getattr(row, name):z.3f}" for row in some)], width) for name, width in split),
            column(["good k-hat", *(percent(row.good_khat) for row in some)], 10),
        ]
        numbers = map("  ".join, zip(*columns))
        lines = [f"{'given':{len(names[0])}}  {'rows':>6}  {next(numbers)}"]
        for given, row in zip(names, self.rows):
            lines.append(f"{given}  {row.rows:6d}  {next(numbers) if row.rows else 'no row has all of these'}")
        return [
            f"How good is it on your data? {counted(self.num_particles, 'draw')} a row; nats a row",
            "",
            *lines,
            "",
            "log p(x_S): by importance sampling, +- standard error over rows. Gap: log p(x_S) - ELBO, the divergence",
            "KL(guide, posterior). Good k-hat: rows for which the guide is a reliable proposal; where they are few,",
            "log p(x_S) and gap are lower bounds: see mm.posterior_draws.",
            *self._split(),
        ]

    def _split(self) -> list[str]:
        if not self.gap_rows:
            return []
        first = "row" if self.gap_rows == 1 else f"{self.gap_rows} rows"
        return [
            f"On the first {first} the gap is taken apart: what the best normal of each row lacks (approximation;",
            "a richer fusion helps), and what the encoder loses against it (amortisation; a better encoder helps).",
        ]

    def _titles(self) -> list[str]:
        """The subsets, all as wide as the widest."""
        names = titles([row.given for row in self.rows], WIDTH)
        width = max([8, *map(len, names)])
        return [f"{given:{width}}" for given in names]

    def to_xarray(self) -> Any:
        """The numbers as an `xarray.Dataset` with dim "subset"."""
        import xarray

        names = [field for field in SubsetCertificate._fields if field != "given"]
        columns = {name: ("subset", [getattr(row, name) for row in self.rows]) for name in names}
        attributes = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rows"}
        return xarray.Dataset(
            columns, {"subset": [" + ".join(row.given) or "nothing" for row in self.rows]}, attributes
        )
