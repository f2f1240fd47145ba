"""Executes the notebooks from clean kernels, without a network.

python notebooks/run.py                 executes every source and writes its .ipynb
python notebooks/run.py 03 05           these only
python notebooks/run.py --scale 4 05    with four times the epochs, for a reader with more time
python notebooks/run.py --check         executes every source and writes nothing; fails on an exception, or if a
                                        committed .ipynb is not its source, has no outputs, or is too large
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from base64 import b64decode, b64encode
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from itertools import repeat
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

HERE = Path(__file__).resolve().parent
LARGEST = 400_000  # bytes of an .ipynb
SLOWEST = 600  # seconds that one cell may take
AT_ONCE = 2  # processes, each with one thread
WRITTEN_AT = {"10_published_methods": 3.0}
"""Notebooks whose committed outputs were made at a larger scale than the check's, which is 1."""


def sources(wanted: list[str]) -> list[Path]:
    """The notebooks whose names start with one of `wanted`; all if that is empty."""
    found = [p for p in sorted(HERE.glob("[0-9][0-9]_*.py")) if not wanted or p.name.startswith(tuple(wanted))]
    if not found:
        raise SystemExit(f"no notebook starts with {', '.join(wanted)}; there are {names()}")
    return found


def names() -> str:
    return ", ".join(p.stem for p in sorted(HERE.glob("[0-9][0-9]_*.py")))


def opened(source: Path) -> nbformat.NotebookNode:
    """The notebook that a py:percent source describes, with the same cell ids every time."""
    notebook = jupytext.read(source)
    for position, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{position}"
    return notebook


def executed(source: Path, scale: float | None) -> tuple[nbformat.NotebookNode, str, float]:
    """The notebook with its outputs, what went wrong ("" if nothing did), and the seconds that it took."""
    scale = WRITTEN_AT.get(source.stem, 1.0) if scale is None else scale
    os.environ.update(MMVAE_NOTEBOOK_SCALE=f"{scale:g}", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm would like a package that a stored bar needs not
    os.environ.pop("MPLBACKEND", None)  # or the kernel would not show figures
    notebook, error, start = opened(source), "", time.perf_counter()
    resources = {"metadata": {"path": str(HERE)}}
    try:
        NotebookClient(
            notebook,
            timeout=SLOWEST,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources=resources,
        ).execute()
    except CellExecutionError as failure:
        error = str(failure)
    for cell in notebook.cells:
        cell["outputs"] = [_in_few_colours(o) for o in map(_without_bars, cell.get("outputs", [])) if o is not None]
        if cell["cell_type"] != "code":
            del cell["outputs"]
    notebook.metadata.pop("language_info", None)  # the Python version of whoever ran it
    return notebook, error, time.perf_counter() - start


def _without_bars(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """The output without progress bars; None if nothing is left."""
    if output.get("name") == "stderr":
        kept = [line for line in output["text"].split("\n") if not re.search(r"\d%\|", line) and line.strip()]
        output["text"] = "\n".join(kept)
        return output if kept else None
    return output


def _in_few_colours(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The output with its figure in a palette of 256 colours: a third of the bytes, hardly a difference."""
    if "image/png" in output.get("data", {}):
        picture, small = Image.open(BytesIO(b64decode(output["data"]["image/png"]))), BytesIO()
        few = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
        few.save(small, "PNG", optimize=True)
        output["data"]["image/png"] = b64encode(small.getvalue()).decode()
    return output


def complaints(source: Path) -> list[str]:
    """What is wrong with the committed .ipynb of a source."""
    path = source.with_suffix(".ipynb")
    if not path.is_file():
        return [f"{path.name} is missing; write it with python notebooks/run.py {source.stem}"]
    committed, found = nbformat.read(path, as_version=4), []
    wanted = [(c.cell_type, c.source) for c in opened(source).cells]
    if [(c.cell_type, c.source) for c in committed.cells] != wanted:
        found.append(f"{path.name} is not what {source.name} says; write it with python notebooks/run.py {source.stem}")
    outputs = [o for c in committed.cells if c.cell_type == "code" for o in c.outputs]
    if not any("image/png" in o.get("data", {}) for o in outputs):
        found.append(f"{path.name} shows no picture")
    if not any("verdict" in o.get("text", "") for o in outputs):
        found.append(f"{path.name} prints no certificate")
    if any(o.get("name") == "stderr" or o.output_type == "error" for o in outputs):
        found.append(f"{path.name} holds a warning or an error; mend its source")
    if path.stat().st_size > LARGEST:
        found.append(f"{path.name} has {path.stat().st_size / 1000:.0f} kB; {LARGEST / 1000:.0f} are allowed")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="the first letters of the notebooks to run; all by default")
    parser.add_argument("--check", action="store_true", help="write nothing; compare with what is committed")
    parser.add_argument("--scale", type=float, help="times the epochs, rows and draws of a quick run")
    options = parser.parse_args()
    chosen, wrong = sources(options.names)[::-1], 0  # the last is the longest, and nothing else would run beside it
    scale = 1.0 if options.check and options.scale is None else options.scale
    with ProcessPoolExecutor(AT_ONCE) as pool:
        runs = pool.map(executed, chosen, repeat(scale))
        for source, (notebook, error, seconds) in zip(chosen, runs):
            found = [error] if error else []
            if not error and not options.check:
                nbformat.write(notebook, source.with_suffix(".ipynb"))
            found += complaints(source) if options.check or not error else []
            wrong += bool(found)
            print(f"{source.stem:26} {seconds:5.0f} s  {'failed' if found else 'ok'}", *found, sep="\n  ", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
