"""Files of models: what comes back, what is refused, and that nothing of a file is executed."""

import errno
import io
import os
import pickle
import stat
import zipfile

import pyro
import pytest
import torch
from cases import for_ladder, three, three_rows
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_mmvae as mm


def values(vae):
    return {name: value.clone() for name, value in vae.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def other(features):
    parts = {"body": mm.Modality(mm.NormalLikelihood(mm.mlp(2, 8, features)), mm.encoder(features, 8, dim=2))}
    return mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())


def test_a_model_comes_back_bit_by_bit_into_another_and_from_its_builder(tmp_path):
    vae = three(prior="GaussianMixture")
    vae.save(tmp_path / "vae.pt")
    again = mm.load(tmp_path / "vae.pt", three(prior="GaussianMixture"))
    built = mm.load(str(tmp_path / "vae.pt"), lambda: three(prior="GaussianMixture"))
    assert same(values(vae), values(again)) and same(values(vae), values(built)) and not built.training
    x = three_rows(4)
    assert torch.equal(vae.eval().posterior(x).mean, built.posterior(x).mean)
    assert [file.name for file in tmp_path.iterdir()] == ["vae.pt"]


def test_a_file_holds_of_a_tensor_no_more_than_the_model_has_of_it(tmp_path):
    """torch writes the whole storage, such as the data whose first components a decoder began with."""
    secret, vae = torch.full((500, 40), 7.25), three()
    secret[:, :2] = 0
    vae.modalities["body"].begun = nn.Parameter(secret[:, :2])
    vae.save(tmp_path / "vae.pt")
    mm.fit(vae, three_rows(20), epochs=1, progress=False, checkpoint=tmp_path / "run.pt")
    for file in ("vae.pt", "run.pt"):
        assert secret[0, 9:10].numpy().tobytes() not in (tmp_path / file).read_bytes()
    assert torch.equal(mm.load(tmp_path / "vae.pt", vae).modalities["body"].begun, torch.zeros(500, 2))


def test_sparse_and_expanded_buffers_are_written_as_they_are(tmp_path):
    vae, wide = three(), torch.zeros(1).expand(1000, 1000)
    vae.register_buffer("sparse", torch.eye(3).to_sparse())
    vae.register_buffer("wide", wide)
    vae.save(tmp_path / "vae.pt")
    assert (tmp_path / "vae.pt").stat().st_size < 40_000
    state = torch.load(tmp_path / "vae.pt", weights_only=True)["state"]
    assert torch.equal(state["sparse"].to_dense(), torch.eye(3)) and state["wide"].shape == (1000, 1000)


def test_another_precision_is_converted(tmp_path):
    vae = three()
    vae.save(tmp_path / "vae.pt")
    single = mm.load(tmp_path / "vae.pt", three().float())
    assert all(torch.equal(a.float(), b) for a, b in zip(vae.state_dict().values(), single.state_dict().values()))
    assert {p.dtype for p in single.parameters()} == {torch.float32}


def test_a_model_of_two_levels_is_saved_too(tmp_path):
    vae, _ = mm.recipes.mhvae(for_ladder(), [2, 2], {"a": 3, "b": 2, "c": 4}, hidden=6)
    vae.save(tmp_path / "vae.pt")
    for parameter in vae.parameters():
        nn.init.zeros_(parameter)
    mm.load(tmp_path / "vae.pt", vae)
    assert any(bool(p.any()) for p in vae.parameters())


def test_another_architecture_is_named_by_its_first_parameter_and_nothing_is_changed(tmp_path):
    other(4).save(tmp_path / "vae.pt")
    vae = other(5)
    before = values(vae)
    with pytest.raises(
        ValueError, match=r"'modalities\.body\.decoder\.net\.2\.weight' has shape \(4, 8\) there, has shape \(5, 8\) in"
    ) as caught:
        mm.load(tmp_path / "vae.pt", vae)
    assert "\n" not in str(caught.value) and same(before, values(vae))
    label = mm.Modality(mm.CategoricalLikelihood(mm.mlp(2, 4)))
    wide = mm.MultimodalVAE({**other(5).modalities, "label": label}, mm.StandardNormal(2), mm.PoE())
    wide.save(tmp_path / "wide.pt")
    vae.save(tmp_path / "vae.pt")
    name = r"'modalities\.label\.decoder\.net\.0\.weight'"
    with pytest.raises(ValueError, match=rf"{name} has shape \(4, 2\) there, does not exist in this one"):
        mm.load(tmp_path / "wide.pt", vae)
    with pytest.raises(ValueError, match=rf"{name} does not exist there, has shape \(4, 2\) in this one"):
        mm.load(tmp_path / "vae.pt", wide)
    assert same(before, values(vae))


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_of_a_malicious_file_is_executed(tmp_path):
    """The payload works where pickle is believed; here it is refused, in an archive of torch's and as a bare pickle."""
    mark, path = tmp_path / "executed", tmp_path / "vae.pt"
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists()
    mark.rmdir()
    contents = {"format": "pyro_mmvae model", "version": 1, "state": Evil(mark)}
    for dump in (torch.save, lambda value, file: file.write(pickle.dumps(value))):
        buffer = io.BytesIO()
        dump(contents, buffer)
        path.write_bytes(buffer.getvalue())
        with pytest.raises(ValueError, match=r"refused and nothing of it was run|no file of") as caught:
            mm.load(path, three)
        assert not mark.exists() and "\n" not in str(caught.value)


def test_every_cut_and_every_changed_byte_of_a_file_is_found(tmp_path):
    vae, path = other(3), tmp_path / "vae.pt"
    vae.save(path)
    whole = path.read_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="damaged"):
            mm.load(path, vae)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        inside = [info for info in archive.infolist() if "/data/" in info.filename]
    for info in inside:
        start = whole.index(info.filename.encode(), info.header_offset) + len(info.filename)
        changed = bytearray(whole)
        changed[start + 100] ^= 1  # behind the padding that aligns the numbers, in any case before the next entry
        path.write_bytes(bytes(changed))
        try:
            assert same(values(mm.load(path, vae)), values(vae))  # it was padding
        except ValueError as error:
            assert "damaged" in str(error)
    with pytest.raises(FileNotFoundError):
        mm.load(tmp_path / "nowhere.pt", vae)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ({"weight": torch.zeros(2)}, "no file of pyro_mmvae's"),
        ([1, 2], "no file of pyro_mmvae's"),
        ({"format": "pyro_mmvae model", "version": 0, "state": {}}, "has format 0, this version of pyro_mmvae reads 1"),
        ({"format": "pyro_mmvae checkpoint", "version": 1, "state": {}}, "is a checkpoint, not a model"),
    ],
)
def test_foreign_and_older_files_are_refused_in_a_line(tmp_path, contents, reason):
    torch.save(contents, tmp_path / "vae.pt")
    with pytest.raises(ValueError, match=reason) as caught:
        mm.load(tmp_path / "vae.pt", three)
    assert "\n" not in str(caught.value)


def test_other_archives_and_texts_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("x", "y")
    for name in ("a.csv", "b.zip"):
        with pytest.raises(ValueError, match="no file of pyro_mmvae's"):
            mm.load(tmp_path / name, three)


@pytest.mark.parametrize("left", [0, 100, 5000, 50_000, 200_000])
def test_a_full_disk_leaves_the_old_file(tmp_path, full_disk, left):
    """Full at once, in a header, and in the midst of a tensor, of which torch raises a RuntimeError."""
    vae, path = other(2000), tmp_path / "vae.pt"
    vae.save(path)
    before = path.read_bytes()
    assert len(before) > 200_000
    full_disk(left)
    nn.init.zeros_(next(vae.parameters()))
    with pytest.raises(OSError, match="No space left"):
        vae.save(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["vae.pt"]
    vae.save(path)
    assert path.read_bytes() != before


def test_two_processes_that_write_to_one_path_spoil_nothing(tmp_path, monkeypatch):
    """The other begins, or begins and ends, while the first writes, which is told; what the other writes is whole."""
    one, two, path, save = other(3), other(3), tmp_path / "vae.pt", torch.save
    partial = tmp_path / "vae.pt.partial"

    def beginning():
        partial.unlink()
        partial.write_bytes(b"begun")

    for meanwhile, reason in ((lambda: two.save(path), "No such file"), (beginning, "another process writes there")):

        def slow(contents, file, meanwhile=meanwhile):
            monkeypatch.setattr(torch, "save", save)
            save(contents, file)
            meanwhile()

        monkeypatch.setattr(torch, "save", slow)
        with pytest.raises(OSError, match=reason):
            one.save(path)
        assert torch.equal(next(mm.load(path, other(3)).parameters()), next(two.parameters()))
    assert partial.read_bytes() == b"begun"


def test_a_folder_that_cannot_be_flushed_is_written_to(tmp_path, monkeypatch):
    """As on some network file systems."""
    flush = os.fsync

    def refuse_folders(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flush(number)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    vae = other(3)
    vae.save(tmp_path / "vae.pt")
    assert torch.equal(next(mm.load(tmp_path / "vae.pt", other(3)).parameters()), next(vae.parameters()))


def of_networks(wrap):
    """A model whose networks stand in a wrapper, drawn from one seed."""
    torch.manual_seed(3)
    decoder, look = mm.NormalLikelihood(wrap(mm.mlp(2, 8, 3))), nn.Sequential(wrap(mm.mlp(3, 8)), mm.NormalHead(8, 2))
    return mm.MultimodalVAE({"body": mm.Modality(decoder, look)}, mm.StandardNormal(2), mm.PoE())


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch.compile's own making
def test_a_compiled_network_trains_is_saved_and_is_the_same_model_as_without(tmp_path):
    """torch.compile around the user's networks: announced, trained as without it, and one file for both."""
    compiled, plain = of_networks(lambda net: torch.compile(net, backend="eager")), of_networks(lambda net: net)
    x = {"body": torch.randn(20, 3)}
    losses = [mm.fit(vae, x, epochs=3, batch_size=20, lr=1e-2, progress=False).loss for vae in (compiled, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)  # the second and third are of trained weights
    step = SVI(compiled.model, compiled.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step
    before = [p.detach().clone() for p in compiled.parameters()]
    step(x)
    assert all(not torch.equal(a, b) for a, b in zip(before, compiled.parameters()))
    for written, built in ((compiled, plain), (plain, compiled)):
        nn.init.ones_(next(written.parameters()))
        written.save(tmp_path / "vae.pt")
        mm.load(tmp_path / "vae.pt", built)
        assert all(torch.equal(a, b) for a, b in zip(written.parameters(), built.parameters()))


class Logarithms(nn.Module):
    """Of version 2, that keeps the logarithm of what version 1 kept, and reads its files as torch's own layers do."""

    _version = 2

    def __init__(self, size):
        super().__init__()
        self.scale = nn.Parameter(torch.full((size,), 0.5))

    def forward(self, x):
        return x * self.scale.exp()

    def _load_from_state_dict(self, state, prefix, about, *rest):
        if (about.get("version") or 1) < 2:
            state[prefix + "scale"] = state[prefix + "scale"].log()
        super()._load_from_state_dict(state, prefix, about, *rest)


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: torch.compile(net, backend="eager")])
def test_a_module_is_told_which_version_of_it_was_saved(tmp_path, wrap, monkeypatch):
    def build():
        look = nn.Sequential(wrap(Logarithms(3)), mm.encoder(3, 8, dim=2))
        return mm.MultimodalVAE({"body": mm.Modality(None, look)}, mm.StandardNormal(2), mm.PoE())

    def scale(vae):
        return next(p for name, p in vae.named_parameters() if name.endswith(".scale"))

    build().save(tmp_path / "vae.pt")
    assert torch.equal(scale(mm.load(tmp_path / "vae.pt", build)), torch.full((3,), 0.5))
    contents = torch.load(tmp_path / "vae.pt", weights_only=True)
    del contents["versions"]
    torch.save(contents, tmp_path / "older.pt")
    assert torch.equal(scale(mm.load(tmp_path / "older.pt", build)), torch.full((3,), 0.5).log())
    monkeypatch.setattr(Logarithms, "_version", 1)
    build().save(tmp_path / "first.pt")
    monkeypatch.undo()
    assert torch.equal(scale(mm.load(tmp_path / "first.pt", build)), torch.full((3,), 0.5).log())


def test_layers_that_take_their_sizes_from_data_take_them_from_a_file(tmp_path):
    def build(features=nn.LazyLinear):
        look = nn.Sequential(features(8), nn.LazyBatchNorm1d(), nn.ReLU(), mm.NormalHead(8, 2))
        parts = {"body": mm.Modality(mm.NormalLikelihood(nn.LazyLinear(3)), look)}
        return mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())

    vae, x = build(), {"body": torch.randn(20, 3)}
    with pytest.raises(ValueError, match=r"^'modalities\.body\.decoder\.net\.weight' has no shape yet; [^\n]*$"):
        vae.save(tmp_path / "vae.pt")
    assert not any(tmp_path.iterdir())
    mm.fit(vae, x, epochs=1, progress=False)
    vae.save(tmp_path / "vae.pt")
    again = mm.load(tmp_path / "vae.pt", build)
    assert same(values(vae), values(again))
    assert torch.equal(vae.posterior(x).mean, again.posterior(x).mean)
    with pytest.raises(ValueError, match=r"encoder\.0\.0\.weight' does not exist there, has no shape yet in this one"):
        mm.load(tmp_path / "vae.pt", lambda: build(lambda size: nn.Sequential(nn.LazyLinear(size))))


def test_an_expanded_scale_and_an_expanded_buffer_are_loaded(tmp_path):
    def build():
        decoder = mm.NormalLikelihood(mm.mlp(2, 8, 6), scale=scale.expand(6))
        decoder.register_buffer("wide", torch.tensor(0.25).expand(6))
        parts = {"body": mm.Modality(decoder, mm.encoder(6, 8, dim=2))}
        return mm.MultimodalVAE(parts, mm.StandardNormal(2), mm.PoE())

    scale = torch.tensor(0.5)
    vae = build()
    vae.save(tmp_path / "vae.pt")
    assert same(values(vae), values(mm.load(tmp_path / "vae.pt", build)))
    scale.fill_(9.0)
    assert torch.equal(vae.modalities["body"].decoder.scale.value, torch.full((6,), 0.5))


@pytest.mark.parametrize("wrong", ["three", None, lambda: None])
def test_what_is_no_model_and_builds_none_is_refused(tmp_path, wrong):
    three().save(tmp_path / "vae.pt")
    with pytest.raises(ValueError, match=r"vae is or builds .*; give a model, or a function that builds one"):
        mm.load(tmp_path / "vae.pt", wrong)
