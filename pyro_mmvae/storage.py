"""Files of models and of runs: written whole or not at all, and read without executing anything of them."""

from __future__ import annotations

import errno
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pyro_mmvae.arrays import shown
from pyro_mmvae.buffers import apart
from pyro_mmvae.titles import around_difference, within_modalities

VERSION = 1
"""The version of the layout of our files; a file of another one is refused."""

_SIGNATURE = b"PK\x03\x04"  # of the zip archives that torch writes
_PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.Size, type(None))

M = TypeVar("M", bound=nn.Module)


class Damaged(ValueError):
    """A file that was cut short, or changed since it was written."""


def write(path: Path, kind: str, contents: Mapping[str, Any], previous: Path | None = None) -> None:
    """Writes a file that is at any moment either the old one or the new one, also after a loss of power.

    Args:
        kind: what sort of file it is; `read` asks for the same.
        contents: tensors, numbers and text, in lists and dicts.
        previous: where the old file goes; None = it is replaced.

    Raises:
        OSError: it could not be written; the old file is as it was.
        TypeError: something in it could not be read back.
    """
    whole = _plain({"format": f"pyro_mmvae {kind}", "version": VERSION, **contents}, "")
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)  # of a process that was killed
        with open(partial, "xb") as file:
            torch.save(whole, file)
            file.flush()
            os.fsync(file.fileno())
            ours = os.path.samestat(os.fstat(file.fileno()), partial.stat())
        if ours and previous is not None and path.exists():
            os.replace(path, previous)
        if ours:
            os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            partial.unlink()
        raise _of_the_disk(error) from None
    if not ours:
        raise OSError(errno.EBUSY, "another process writes there as well", str(path))
    with suppress(OSError):  # a new name is safe when its folder is; Windows and some network file systems keep no such
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _of_the_disk(error: BaseException) -> BaseException:
    """The OSError behind what torch raises of a disk that is full in the midst of a tensor, if there is one."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__context__
    return error if found is None else found


def read(path: Path, kind: str) -> dict[str, Any]:
    """What `write` wrote, on the CPU; nothing of the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it was cut short or changed.
        ValueError: another program, another version or another kind of ours wrote it, or it holds code.
    """
    foreign = f"{path} is no file of pyro_mmvae's; give another path"
    contents = _loaded(path, foreign)
    found = str(contents.get("format")) if isinstance(contents, dict) else ""
    if not found.startswith("pyro_mmvae "):
        raise ValueError(foreign)
    if found != f"pyro_mmvae {kind}":
        raise ValueError(f"{path} is a {found.split(' ', 1)[1]}, not a {kind}; give another path")
    if contents.get("version") != VERSION:
        raise ValueError(
            f"{path} has format {contents.get('version')}, this version of pyro_mmvae reads {VERSION};"
            " use the version that wrote it"
        )
    return contents


def _loaded(path: Path, foreign: str) -> Any:
    """What torch wrote, whole and of plain values; ValueError `foreign` for what it did not write."""
    with open(path, "rb") as file:
        if not _SIGNATURE.startswith(file.read(4)):
            raise ValueError(foreign)
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not compare the checksums
            broken = archive.testzip()
        if broken is not None:
            raise zipfile.BadZipFile(broken)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError) as error:
        raise Damaged(f"{path} is damaged ({error}); it was cut short, or changed after it was written") from None
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds objects besides tensors, numbers and text; it is refused and nothing of it was run"
        ) from None
    except RuntimeError:
        raise ValueError(foreign) from None


def save(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes the parameters and buffers of a model, for `load`.

    The file is written whole or not at all. It does not hold the architecture: that is the program which built it.

    Raises:
        OSError: it could not be written.
        ValueError: a layer has no sizes yet, as it takes them from the first batch.
    """
    state = module.state_dict()
    lazy = next((name for name, value in state.items() if is_lazy(value)), None)
    if lazy is not None:
        raise ValueError(f"{lazy!r} has no shape yet; run the model on a batch first, then save it")
    versions = {_name(key + "."): about.get("version") for key, about in getattr(state, "_metadata", {}).items()}
    state = {_name(k): v for k, v in state.items()}
    write(Path(path), "model", {"state": state, "versions": versions, "parts": within_modalities(module)})


def load(path: str | os.PathLike[str], vae: M | Callable[[], M]) -> M:
    """A model with the parameters that `vae.save(path)` wrote.

    Args:
        path: the file. Nothing of it is executed.
        vae: a model of the same architecture, which is changed in place, or a function that builds one. It may be on
            another device and in another precision than the saved one.

    Returns:
        The model, in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: in one line, a file that is damaged, foreign or of another version, or the first parameter that
            differs from the model's, or network to which parameters mean something else, such as one for a table with
            other columns; then the model is as it was. Or what is no model and builds none.

    Example:
        >>> import tempfile, pyro_mmvae as mm
        >>> def build():
        ...     parts = {"a": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 3)), mm.encoder(3, 8, dim=2))}
        ...     return mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())
        >>> vae, path = build(), tempfile.mkdtemp() + "/vae.pt"
        >>> vae.save(path)
        >>> again = load(path, build)
        >>> all(bool((a == b).all()) for a, b in zip(vae.parameters(), again.parameters()))
        True
    """
    module = vae() if callable(vae) and not isinstance(vae, nn.Module) else vae
    if not isinstance(module, nn.Module):
        raise ValueError(f"vae is or builds {shown(module)}; give a model, or a function that builds one")
    module = cast(M, module)
    contents, own = read(Path(path), "model"), module.state_dict(keep_vars=True)
    state, versions = contents["state"], contents.get("versions")
    names = {key: _name(key) for key in own}
    lazy = {names[key] for key, value in own.items() if is_lazy(value)} & state.keys()  # these take the file's shapes
    compare(path, state, {name: state[name] if name in lazy else own[key] for key, name in names.items()})
    _compare_parts(path, contents.get("parts", {}), within_modalities(module))
    _compare_shared(path, state, {names[key]: id(value) for key, value in own.items() if torch.is_tensor(value)})
    apart([module])
    filled = OrderedDict((key, state[name]) for key, name in names.items())
    if versions is not None:  # by which a module knows numbers that an older one wrote; older files have none
        about = {key: {"version": versions.get(_name(key + "."))} for key in getattr(own, "_metadata", {})}
        filled._metadata = about  # type: ignore[attr-defined]
    module.load_state_dict(filled)
    module.eval()
    return module


def compare(path: str | os.PathLike[str], state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises ValueError that names the first parameter in which a file and a model differ, in name or in shape."""
    for name in [*own, *state]:
        there, here = _shape(state, name), _shape(own, name)
        if there != here:
            raise ValueError(
                f"{path} was written from another model: {name!r} {there} there, {here} in this one; build the same one"
            )


def _compare_shared(path: str | os.PathLike[str], state: Mapping[str, Any], places: Mapping[str, int]) -> None:
    """Raises ValueError for names that are one tensor in the model, and that have several in the file."""
    first: dict[int, str] = {}
    for name, place in places.items():
        other = first.setdefault(place, name)
        if name != other and not torch.equal(state[name], state[other]):
            raise ValueError(
                f"{path} was written from another model: {other!r} and {name!r} differ there and are one in this one;"
                " build the same one"
            )


def _compare_parts(path: str | os.PathLike[str], there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raises ValueError that names the first network to which the same numbers would mean something else."""
    for name in [name for name in here if there.get(name, here[name]) != here[name]]:
        then, now = around_difference(there[name], here[name])
        raise ValueError(
            f"{path} was written from another model: {name!r} is {then} there, {now} in this one; build the same one,"
            " of a table from what that was made of then"
        )


def _shape(state: Mapping[str, Any], name: str) -> str:
    if name not in state:
        return "does not exist"
    if is_lazy(state[name]):
        return "has no shape yet"
    return f"has shape {tuple(state[name].shape)}" if isinstance(state[name], torch.Tensor) else "is no tensor"


def _name(key: str) -> str:
    """The name of a parameter, whether or not `torch.compile` was put around its network."""
    return key.replace("_orig_mod.", "")


def _plain(value: Any, where: str) -> Any:
    """The same for a file: checked, and a tensor that is part of a larger one alone, as torch would write the whole."""
    if type(value) in (dict, OrderedDict):
        return {_plain(key, where): _plain(part, f"{where}[{key!r}]") for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(part, f"{where}[{index}]") for index, part in enumerate(value))
    if isinstance(value, torch.Tensor):
        part = value.layout == torch.strided and value.untyped_storage().nbytes() > value.nbytes
        return value.detach().clone() if part else value
    if type(value) not in _PLAIN:  # no subclasses: np.float64 is a float
        raise TypeError(f"{where} is a {type(value).__name__}; a file holds tensors, numbers and text only")
    return value
