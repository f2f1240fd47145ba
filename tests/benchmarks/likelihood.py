"""log_likelihood with 1,000 particles over decoding alone, its memory, and importing over importing Pyro.

`python -m tests.benchmarks.likelihood [--quick] [--clock cpu] [--out FILE.json]`
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

import torch

import pyro_mmvae as mm
from pyro_mmvae.weights import chunks
from tests.benchmarks import timing
from tests.benchmarks.workloads import WORKLOADS, build, data


@torch.no_grad()
def decode_alone(vae, batch, draws, dim):
    """Every decoder on as many codes, and the log-probability of the data: what no estimator can do without."""
    for part, sizes in chunks(batch, draws):
        for size in sizes:
            z = torch.randn(size, part.rows, 1, dim)
            for name, modality in vae.modalities.items():
                modality.decoder(z).log_prob(part[name].unsqueeze(1))


def peak():
    """The most memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def imported(clock):
    """Seconds that `import pyro_mmvae` takes more than `import pyro`, each in a process of its own."""
    code = f"import time; t = time.{'process_time' if clock == 'cpu' else 'perf_counter'}(); import {{}}; "
    code += f"print(time.{'process_time' if clock == 'cpu' else 'perf_counter'}() - t)"
    run = [subprocess.check_output([sys.executable, "-c", code.format(m)], text=True) for m in ("pyro", "pyro_mmvae")]
    return float(run[1]) - float(run[0])


def main():
    given = timing.options(__doc__, 5)
    torch.distributions.Distribution.set_default_validate_args(False)
    rows, draws, table = (10, 100, {}) if given.quick else (100, 1000, {})
    timing.heading("workload", "log_likelihood / decoding", "more memory at its peak, MB")
    for name in ("small",) if given.quick else ("small", "medium"):
        vae, dim = build(name).eval(), WORKLOADS[name].dim
        x = {k: v[:rows] for k, v in data(name, 0.0)[0].items()}
        batch = vae.check(x)
        arms = {
            "decoding": lambda n, v=vae, b=batch, d=dim: decode_alone(v, b, n, d),
            "log_likelihood": lambda n, v=vae, x=x: mm.log_likelihood(v, x, num_particles=n),
        }
        arms["decoding"](draws)
        before = peak()
        arms["log_likelihood"](draws)
        found = timing.ratio(timing.paired(arms, draws, 10, given.rounds, given.clock), "log_likelihood", "decoding")
        table[name] = {**found, "MB": peak() - before}
        timing.line(f"{name}, {rows} rows x {draws} draws", timing.shown(found), f"{table[name]['MB']:.0f}")
    table["import"] = statistics.median(imported(given.clock) for _ in range(given.rounds))
    print(f"\nimport pyro_mmvae - import pyro: {table['import']:.2f} s")
    timing.write(given.out, table)


if __name__ == "__main__":
    main()
