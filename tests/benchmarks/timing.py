"""What the benchmarks share: paired timing of several arms in one process, and tables in Markdown and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

CPU = torch.device("cpu")
CLOCKS = {"cpu": (1, time.process_time), "wall": (2, time.perf_counter)}
"""CPU seconds of one thread are the steady metric, wall seconds of two threads the honest one."""


def options(description: str | None, rounds: int, *more: str) -> argparse.Namespace:
    """The options of every benchmark; sets the number of threads and switches validation off as `fit` does."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of the smallest case, to see that it runs")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: 1 thread; wall: 2 threads")
    parser.add_argument("--out", help="a JSON file for the figures")
    parser.add_argument("--device", default="cpu", type=torch.device, help="of models and data, for step; wall time")
    for name in more:
        parser.add_argument(name)
    given = parser.parse_args()
    given.rounds = 1 if given.quick else given.rounds
    torch.set_num_threads(CLOCKS[given.clock][0])
    threads = torch.get_num_threads()
    load = f"load {os.getloadavg()[0]:.2f}"
    print(f"{given.clock} time, threads {threads}, rounds {given.rounds}, {load}, {machine(given.device)}\n")
    return given


def compiles(given: argparse.Namespace) -> bool:
    """Whether compiled steps are measured: wall time, on a machine with a C++ compiler."""
    return not given.quick and given.clock == "wall" and shutil.which("g++") is not None


def machine(device: torch.device = CPU) -> str:
    name = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    cores = f"{os.cpu_count()} cores {platform.machine()}"
    return f"{name}{cores}, Python {sys.version.split()[0]}, torch {torch.__version__}"


@torch.no_grad()
def agree(name: str, ours: Callable[[], Any], theirs: Callable[[], Any], draws: int) -> None:
    """Two losses are one number within five standard errors; else there is nothing to compare."""
    one, other = (torch.tensor([float(loss()) for _ in range(draws)]) for loss in (ours, theirs))
    se = ((one.var() + other.var()) / draws).sqrt()
    assert (one.mean() - other.mean()).abs() < 5 * se, (name, one.mean(), other.mean(), se)


def paired(
    arms: Mapping[str, Callable[[int], Any]],
    amount: int,
    least: int,
    rounds: int,
    clock: str,
    device: torch.device = CPU,
) -> dict:
    """Seconds of every arm in every round: arms in random order, each with a little untimed work before its slot.

    Args:
        arms: name -> function of how much to do; it may return the seconds that count.
        amount, least: of timed and of untimed work.
        device: whose work is waited for at both ends of a slot.
    """

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return CLOCKS[clock][1]()

    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm in random.sample(list(arms), len(arms)):
            arms[arm](least)
            start = now()
            found = arms[arm](amount)
            seconds[arm].append(found if isinstance(found, float) else now() - start)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], arm: str, base: str) -> dict[str, float]:
    """Median and quartiles of the ratio in the same round."""
    ratios = [a / b for a, b in zip(seconds[arm], seconds[base])]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"median": middle, "low": low, "high": high}


def shown(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def heading(*columns: str) -> None:
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


def line(*cells: object) -> None:
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


def write(path: str | None, table: Mapping[str, object], device: torch.device = CPU) -> None:
    """The figures with the machine and the load that they were measured under."""
    if path:
        with open(path, "w") as file:
            json.dump({"machine": machine(device), "load": os.getloadavg(), "figures": table}, file, indent=2)
