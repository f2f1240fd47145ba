"""The runner of the notebooks: what it says of a stored notebook, and that the committed ones are their sources."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
SOURCE = "# %% [markdown]\n# # Title\n\n# %%\nprint(1)\n"


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = spec_from_file_location("notebooks_run", FOLDER / "run.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stored(run, folder, outputs, source=SOURCE):
    """A source, and beside it the .ipynb of what SOURCE says with the given outputs in its last cell."""
    import nbformat

    path = folder / "01_example.py"
    path.write_text(SOURCE)
    notebook = run.opened(path)
    notebook.cells[-1]["outputs"] = [nbformat.from_dict(output) for output in outputs]
    nbformat.write(notebook, path.with_suffix(".ipynb"))
    path.write_text(source)
    return path


PICTURE = {"output_type": "display_data", "data": {"image/png": "aGk="}, "metadata": {}}
VERDICT = {"output_type": "stream", "name": "stdout", "text": "given  verdict\n"}
WARNING = {"output_type": "stream", "name": "stderr", "text": "UserWarning: beware\n"}


def test_committed_notebooks_are_what_their_sources_say(run):
    found = [complaint for source in run.sources([]) for complaint in run.complaints(source)]
    assert not found


def test_a_good_notebook_has_no_complaint(run, tmp_path):
    assert run.complaints(stored(run, tmp_path, [PICTURE, VERDICT])) == []


@pytest.mark.parametrize(
    "outputs, source, complaint",
    [
        ([PICTURE, VERDICT], SOURCE.replace("print(1)", "print(2)"), "is not what 01_example.py says"),
        ([VERDICT], SOURCE, "shows no picture"),
        ([PICTURE], SOURCE, "prints no certificate"),
        ([PICTURE, VERDICT, WARNING], SOURCE, "holds a warning"),
        ([PICTURE | {"data": {"image/png": "a" * 500_000}}, VERDICT], SOURCE, "kB; 400 are allowed"),
    ],
)
def test_each_fault_is_named(run, tmp_path, outputs, source, complaint):
    found = run.complaints(stored(run, tmp_path, outputs, source))
    assert len(found) == 1 and complaint in found[0]


def test_a_missing_notebook_says_how_to_write_it(run, tmp_path):
    path = stored(run, tmp_path, [])
    path.with_suffix(".ipynb").unlink()
    assert run.complaints(path) == ["01_example.ipynb is missing; write it with python notebooks/run.py 01_example"]


def test_progress_bars_are_not_stored_and_warnings_are(run):
    bar = {"name": "stderr", "text": " 50%|#####     | 1/2 [00:01<00:01, loss 3.0]\n\n"}
    assert run._without_bars(dict(bar)) is None
    both = run._without_bars({"name": "stderr", "text": bar["text"] + WARNING["text"]})
    assert both["text"] == "UserWarning: beware"
