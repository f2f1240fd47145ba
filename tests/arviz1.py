"""Under ArviZ 1.x, where torch is not installed, on Python 3.12 or newer: `python tests/arviz1.py [FILE.npz]`.

The adapter, and the weights in a file of `psis_rows.py` against those of arviz-stats.
"""

import importlib.util
import sys
import tempfile
from pathlib import Path

import numpy as np


def load():
    path = Path(__file__).parent.parent / "pyro_mmvae" / "arviz_adapter.py"
    spec = importlib.util.spec_from_file_location("arviz_adapter", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def round_trip(module):
    """What goes in comes back from a file: values, dims and labels."""
    import xarray

    z, x = np.random.default_rng(0).normal(size=(1, 7, 3, 2)), np.arange(6.0).reshape(3, 2)
    groups = {
        "posterior": {"z": (("chain", "draw", "row", "latent"), z)},
        "observed_data": {"body": (("body_row", "body_feature"), x)},
        "log_likelihood": {"body": (("chain", "draw", "body_row"), z[..., 0])},
        "sample_stats": {
            "log_weight": (("chain", "draw", "row"), z[..., 1]),
            "khat": (("row",), np.array([0.1, -np.inf, 2.0])),
        },
        "constant_data": {"body_observed": (("row",), np.array([True, False, True]))},
        "prior": {},
    }
    built = module.build(groups, {"row": list("abc"), "body_feature": ["mass", "length"]})
    with tempfile.TemporaryDirectory() as folder:
        built.to_netcdf(str(Path(folder) / "posterior.nc"))
        engine = {"engine": "h5netcdf"}
        for group, variables in groups.items():
            for name, (axes, values) in variables.items():
                stored = xarray.open_dataset(Path(folder) / "posterior.nc", group=group, **engine).load()
                np.testing.assert_array_equal(stored[name].values, values)
                assert stored[name].dims == axes, (group, stored[name].dims)
        posterior = xarray.open_dataset(Path(folder) / "posterior.nc", group="posterior", **engine).load()
        assert posterior["row"].values.tolist() == ["a", "b", "c"]
    return built


def same_weights(path):
    """k-hat and smoothed weights are those of arviz-stats to 1e-6; the number of rows compared."""
    from arviz_stats.base import array_stats

    found, compared = np.load(path), 0
    for name in (name for name in found.files if name.startswith("raw")):
        draws = name.removeprefix("raw")
        theirs, khat = array_stats.psislw(-found[name].T, axis=-1)  # it takes log-likelihoods, the weights' inverse
        np.testing.assert_allclose(found[f"khat{draws}"], khat, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found[f"log_weights{draws}"], theirs.T, rtol=0, atol=1e-6)
        compared += len(khat)
    return compared


if __name__ == "__main__":
    import arviz

    adapter = load()
    assert "torch" not in sys.modules
    tree = round_trip(adapter)
    if len(sys.argv) > 1:
        print(f"Pareto-smoothed weights of {same_weights(sys.argv[1])} rows are those of arviz-stats to 1e-6")
    print(f"ArviZ {arviz.__version__}: {type(tree).__name__} with {', '.join(tree.children)}: 1 passed, 0 failed")
