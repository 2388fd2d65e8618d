import dataclasses
import functools
import hashlib
import io
import json
import os
import pickle
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn

from recon_core.errors import CinestreamError, ModelError, ResourceError, SettingsError
from recon_core.methods import METHODS
from recon_core.networks.base import Network
from recon_core.trust.ranges import TrainingRange
from recon_core.weights.checkpoint import content_digest, read_checkpoint
from recon_core.weights.config import build_network, parse_config
from recon_core.weights.loading import halve, import_weights, load_network, write_weights
from recon_core.weights.manifest import WeightsFacts, find_weights, known_weights, user_folder
from recon_core.weights.matching import load_into, match
from tests.helpers.networks import TINY, tiny
from tests.helpers.paths import SHARED, existing

REAL = SHARED / "parity" / "crnn_mri"


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    channels: int = 3
    blocks: int = 2
    sizes: tuple[int, int] = (2, 5)
    extra: tuple[float, ...] = ()
    shared: bool = True
    kind: Literal["XF", "XT"] = "XF"
    gain: float = 1.0
    limit: int | None = None
    title: str = ""

    def __post_init__(self):
        if self.blocks < 1:
            raise ValueError("there must be at least one block")


class Toy(Network):
    """Has what the real ones have: a shared tensor, another name for a part, a buffer, tensors it leaves alone."""

    Config = ToyConfig
    scale = "free"
    unused_keys = r"gate\.\d+"

    def __init__(self, config=None):
        super().__init__()
        self.config = config = config or ToyConfig()
        if config.channels > 1000:
            raise ValueError("too wide")
        slope = nn.PReLU()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"conv": nn.Conv1d(config.channels, config.channels, 1), "slope": slope})
            for _ in range(config.blocks)
        )
        self.tail = nn.Linear(*config.sizes)
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("window", torch.ones(2), persistent=False)

    def authors_key(self, key):
        return re.sub(r"^blocks\.(\d+)\.", r"cascades.\1.net.", key)

    def check_checkpoint(self, tensors):
        if tensors.get("gate.0", torch.zeros(1)).any():
            raise ModelError("the checkpoint belongs to the variant with a gate")
        assert all(key.startswith(("cascades", "tail", "steps", "gate")) for key in tensors)

    def working_bytes(self, shape):
        return 0

    def reconstruct(self, data, *, implementation="auto"):
        return data


class Plain(nn.Module):
    """A class that a checkpoint of a whole network would need."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 1)


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    """The method; nothing of the person who runs the tests is looked at."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("CINESTREAM_WEIGHTS", raising=False)
    for name in ("toy", "toy2"):
        monkeypatch.setitem(METHODS, name, dataclasses.replace(METHODS["crnn_mri"], network=f"{__name__}:Toy"))
    monkeypatch.setitem(METHODS, "other", dataclasses.replace(METHODS["crnn_mri"], network=f"{__name__}:Other"))


class Other(Toy):
    """A network of other names."""

    def authors_key(self, key):
        return key.replace("conv", "kernel").replace("slope", "bend").replace("tail", "head").replace("steps", "count")


def authors(network=None, seed=0):
    """A checkpoint as the authors' code would write it: shared tensors under all their names."""
    network = network or Toy()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    state = network.state_dict()
    return {network.authors_key(key): value.clone() for key, value in state.items()}


def same(network, tensors):
    """Whether a network has the values of a checkpoint by the authors' names."""
    state = network.state_dict()
    return all(torch.equal(state[key], tensors[network.authors_key(key)].to(state[key].dtype)) for key in state)


def saved(path, document, **options):
    torch.save(document, path, **options)
    return path


# --- reading ----------------------------------------------------------------------------------------------------------


NESTS = {
    "bare": lambda tensors: tensors,
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 3},
    "model": lambda tensors: {"model": tensors, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "trainer": lambda tensors: {"step": torch.tensor(3), "trainer": {"inner": {"network": tensors}}},
    "with averages": lambda tensors: {"averages": dict(tensors), "model_state_dict": tensors},
    "big optimiser": lambda tensors: {
        "optimizer_state": {str(key): torch.ones(1) for key in range(99)},
        "state_dict": tensors,
    },
    "other things beside": lambda tensors: {**tensors, "version": 3, 5: torch.ones(2), "list": [torch.ones(1)]},
}


@pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS)
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_the_tensors_are_found_wherever_trainers_keep_them(tmp_path, nest, new):
    tensors = authors()
    path = saved(tmp_path / "a.pth", nest(tensors), _use_new_zipfile_serialization=new)
    found = read_checkpoint(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("suffix", ["pth", "pt", "ckpt", "pth.tar", "bin"])
def test_any_suffix_is_read(tmp_path, suffix):
    assert read_checkpoint(saved(tmp_path / f"a.{suffix}", authors())).keys() == authors().keys()


def test_parameters_are_tensors_that_need_no_gradient(tmp_path):
    path = saved(tmp_path / "a.pth", {"a": nn.Parameter(torch.ones(2)), "b": torch.ones(4)[::2]})
    found = read_checkpoint(path)
    assert not any(tensor.requires_grad for tensor in found.values())
    assert found["b"].tolist() == [1, 1]


def test_several_sets_of_tensors_are_refused_by_name(tmp_path):
    path = saved(tmp_path / "a.pth", {"left": authors(), "right": authors()})
    with pytest.raises(ModelError, match=r"several sets of tensors \(left, right\); save the one to use"):
        read_checkpoint(path)


@pytest.mark.parametrize("document", [{}, {"epoch": 3}, [torch.ones(3)], torch.ones(3), {1: torch.ones(1)}, None])
def test_what_has_no_tensors_by_name_is_refused(tmp_path, document):
    with pytest.raises(ModelError, match="holds no tensors by name"):
        read_checkpoint(saved(tmp_path / "a.pth", document))


def test_a_file_that_is_not_there_or_a_folder_is_reported(tmp_path):
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors", tmp_path):
        with pytest.raises(ModelError, match="there is no checkpoint"):
            read_checkpoint(path)


class Trap:
    """Makes a file when a pickle with it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "deep", "as a tensor's name"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, form):
    trap, path = tmp_path / "sprung", tmp_path / "a.pth"
    document = {**authors(), "trap": Trap(trap)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(Trap(trap), protocol=2))
    elif form == "deep":
        torch.save({"state_dict": authors(), "callbacks": [{"x": (Trap(trap),)}]}, path)
    elif form == "as a tensor's name":
        torch.save({Trap(trap): torch.ones(1)}, path)
    else:
        torch.save(document, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path)
    assert not trap.exists()
    text = str(caught.value)
    assert re.search(r"\(\w+\.mkdir\)", text)
    assert "torch.save(checkpoint" in text
    assert "bare.pth" in text
    pickle.loads(pickle.dumps(Trap(trap)))  # the trap itself works
    assert trap.exists()


def test_a_whole_network_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ModelError, match=r"holds objects \([\w.]*Plain\)(.|\n)*checkpoint\.state_dict\(\)"):
        read_checkpoint(saved(tmp_path / "a.pt", Plain()))


def test_empty_and_truncated_files_are_refused(tmp_path):
    contents = {}
    for form in ("zip", "legacy"):
        buffer = io.BytesIO()
        torch.save(authors(), buffer, _use_new_zipfile_serialization=form == "zip")
        contents[f"{form}.pth"] = buffer.getvalue()
    save_file(authors(), tmp_path / "whole")
    contents["a.safetensors"] = (tmp_path / "whole").read_bytes()
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert read_checkpoint(path)
        for length in (0, 1, 4, 30, len(content) // 2, len(content) - 40, len(content) - 1):
            path.write_bytes(content[:length])
            with pytest.raises(ModelError, match="cannot read"):
                read_checkpoint(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", [b"hello", b"<html>404</html>", b"PK\x03\x04 and no more", b"\x80\x02}q\x00."])
def test_what_is_no_checkpoint_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot read|no tensors"):
        read_checkpoint(path)


@functools.cache
def whole(form):
    """A checkpoint, made once: torch writes addresses in memory into one of the old kind, which vary in length."""
    tensors = {"a": torch.ones(3), "b": torch.ones(2, 2)}
    if form == "safetensors":
        return save(tensors)
    buffer = io.BytesIO()
    torch.save({"state_dict": tensors}, buffer, _use_new_zipfile_serialization=form == "zip")
    return buffer.getvalue()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(form=st.sampled_from(["zip", "legacy", "safetensors"]), data=st.data())
def test_damage_is_one_of_our_errors_or_another_value(tmp_path, form, data):
    path = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pth")
    content = bytearray(whole(form))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = read_checkpoint(path)
    except CinestreamError:
        return
    content_digest(found)
    match(Toy(), found)


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    path = saved(tmp_path / "a.pth", {"a": torch.ones(1).expand(1 << 20, 1 << 20)})
    with pytest.raises(ModelError, match=r"'a' in .* is no plain tensor"):
        read_checkpoint(path)


def test_a_storage_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    whole = saved(tmp_path / "whole.pth", {"a": torch.zeros(4)})
    with zipfile.ZipFile(whole) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    many = b"J" + struct.pack("<i", 1 << 20)  # the pickle's way to say an int, where it said 4
    forged = {
        name: part.replace(b"K\x04t", many + b"t").replace(b"K\x04\x85", many + b"\x85") for name, part in parts.items()
    }
    assert forged != parts
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for name, part in forged.items():
            archive.writestr(name, part)
    with pytest.raises(ModelError, match="cannot read"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_compressed_checkpoint_is_refused_before_it_grows(tmp_path):
    whole = saved(tmp_path / "whole.pth", {"a": torch.zeros(100_000)})
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    with pytest.raises(ModelError, match="compressed"):
        read_checkpoint(tmp_path / "a.pth")


ODD = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.ones(3, device="meta"),
    "8-bit float": lambda: torch.ones(3).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("tensor", ODD.values(), ids=ODD)
def test_odd_tensors_are_refused(tmp_path, tensor):
    with pytest.raises(ModelError, match=r"is no plain tensor|holds objects"):
        read_checkpoint(saved(tmp_path / "a.pth", {"a": tensor()}))


def test_the_digest_is_of_names_shapes_and_values_not_of_the_file(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1), "c": torch.zeros(0, 2), "d": torch.ones(())}
    save_file(tensors, tmp_path / "a.safetensors")
    formats = [
        read_checkpoint(tmp_path / "a.safetensors"),
        read_checkpoint(saved(tmp_path / "a.pth", {"state_dict": dict(reversed(tensors.items()))})),
        {**tensors, "a": tensors["a"].double()},
        {**tensors, "a": tensors["a"].bfloat16()},  # small whole numbers survive it
        {**tensors, "a": tensors["a"].T.contiguous().T},
    ]
    digests = {content_digest(each) for each in formats}
    assert digests == {content_digest(tensors)}
    others = [
        {**tensors, "a": tensors["a"].reshape(3, 2)},
        {**tensors, "a": tensors["a"] + 1},
        {**tensors, "e": torch.ones(1)},
        {"e" if key == "a" else key: value for key, value in tensors.items()},
    ]
    assert len({content_digest(each) for each in others} | digests) == len(others) + 1


# --- matching and loading ---------------------------------------------------------------------------------------------


def test_the_authors_names_match():
    tensors, network = authors(), Toy()
    report = load_into(network, tensors)
    assert report.complete
    assert (report.naming, report.prefix, len(report.matched)) == ("authors", "", len(tensors))
    assert report.text() == f"{len(tensors)} tensors match, by the authors' names"
    assert same(network, tensors)


def test_our_own_names_match_with_every_shared_tensor_once():
    source, network = Toy(), Toy()
    tensors = authors(source)
    report = load_into(network, {**dict(source.named_parameters()), "steps": source.steps})
    assert report.complete
    assert report.naming == "own"
    assert "cinestream's own names" in report.text()
    assert same(network, tensors)


@given(
    prefix=st.lists(st.sampled_from(["module", "promptmr", "_orig_mod", "net", "0", "cascades", "tail"]), max_size=4),
    own=st.booleans(),
)
def test_a_prefix_is_found_whatever_it_is(prefix, own):
    source, network = Toy(), Toy()
    tensors = authors(source)
    names = dict(source.state_dict()) if own else tensors
    before = "".join(f"{part}." for part in prefix)
    report = load_into(network, {before + key: value for key, value in names.items()})
    assert (report.prefix, report.naming) == (before, "own" if own else "authors")
    assert set(report.matched) == set(names)
    assert same(network, tensors)


def test_what_a_trainer_keeps_in_addition_to_the_network_is_not_used():
    tensors = {f"toy.{key}": value for key, value in authors().items()}
    report = load_into(Toy(), {**tensors, "loss.w": torch.ones(3)})
    assert report.unused == ("loss.w",)
    assert "1 not used: loss.w" in report.text()


def test_a_checkpoint_with_the_network_twice_is_refused():
    twice = {f"{name}.{key}": value for name in ("model", "average") for key, value in authors().items()}
    with pytest.raises(ModelError, match=r"several times \('model\.', 'average\.'\); save the one"):
        load_into(Toy(), twice)


def test_one_name_of_a_shared_tensor_is_enough():
    tensors, network = authors(), Toy()
    one = {key: value for key, value in tensors.items() if key != "cascades.0.net.slope.weight"}
    assert load_into(network, one).complete
    assert same(network, tensors)


def test_names_of_a_shared_tensor_with_different_values_are_refused():
    tensors, network = authors(), Toy()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    tensors["cascades.1.net.slope.weight"] = tensors["cascades.1.net.slope.weight"] + 1
    with pytest.raises(ModelError, match=r"several values(.|\n)*1 unlike the tensor .* cascades\.1\.net\.slope"):
        load_into(network, tensors)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_shared_tensor_that_is_absent_is_missing_once():
    tensors = {key: value for key, value in authors().items() if "slope" not in key}
    assert match(Toy(), tensors).missing == ("cascades.0.net.slope.weight",)


def test_a_partial_checkpoint_is_refused_with_the_report():
    network = Toy()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    tensors = {key: value for key, value in authors().items() if not key.startswith("tail")}
    with pytest.raises(ModelError) as caught:
        load_into(network, tensors)
    text = str(caught.value)
    assert "does not fit Toy; it is not complete" in text
    assert "2 missing: tail.weight, tail.bias" in text
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_unexpected_tensors_are_refused():
    with pytest.raises(ModelError, match=r"other parts(.|\n)*1 unexpected: cascades\.2\.net\.conv\.weight"):
        load_into(Toy(), {**authors(), "cascades.2.net.conv.weight": torch.ones(1)})


def test_tensors_that_the_authors_never_use_are_left_alone_and_reported():
    report = load_into(Toy(), {**authors(), "gate.0": torch.zeros(9)})
    assert report.unused == ("gate.0",)
    assert report.complete


@pytest.mark.parametrize("prefix", ["", "module."])
def test_another_variant_of_the_network_is_refused_by_its_own_check(prefix):
    tensors = {prefix + key: value for key, value in {**authors(), "gate.0": torch.ones(9)}.items()}
    with pytest.raises(ModelError, match="the variant with a gate"):
        load_into(Toy(), tensors)


def test_another_width_is_reported_with_sizes_and_fields():
    with pytest.raises(ModelError) as caught:
        load_into(Toy(), authors(Toy(ToyConfig(channels=4, sizes=(2, 6)))))
    text = str(caught.value)
    assert "has other sizes" in text
    assert "--config NAME=VALUE (channels, blocks, sizes" in text
    assert "cascades.0.net.conv.weight (4x4x1, expected 3x3x1)" in text
    assert "2 tensors match" not in text


def test_another_depth_is_reported():
    with pytest.raises(ModelError, match=r"other parts, or more of them: .*blocks"):
        load_into(Toy(), authors(Toy(ToyConfig(blocks=3))))
    with pytest.raises(ModelError, match=r"not complete(.|\n)*2 missing: cascades\.1\.net\.conv"):
        load_into(Toy(), authors(Toy(ToyConfig(blocks=1))))


def test_the_checkpoint_of_another_method_is_recognised_by_its_names():
    with pytest.raises(ModelError, match="it looks like one of other"):
        load_into(Toy(), authors(Other()))
    strange = {f"encoder.{number}": torch.ones(2) for number in range(30)}
    with pytest.raises(ModelError, match="hardly any of its names is known") as caught:
        load_into(Toy(), strange)
    assert "encoder.9 and 20 more" in str(caught.value)


def test_a_hint_does_not_fail_for_a_method_that_cannot_be_built(monkeypatch):
    monkeypatch.setattr(Other, "__init__", lambda self, config: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(ModelError, match="hardly any"):
        load_into(Toy(), {"strange": torch.ones(1)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_in_float32_are_refused(value):
    tensors = authors()
    tensors["tail.bias"] = torch.full((5,), value, dtype=torch.float64)
    with pytest.raises(ModelError, match=r"1 tensors .* not finite in float32: tail\.bias"):
        load_into(Toy(), tensors)


def test_complex_weights_are_refused():
    tensors = authors()
    tensors["tail.bias"] = tensors["tail.bias"].to(torch.complex64)
    with pytest.raises(ModelError, match=r"tail\.bias .* has the type torch\.complex64, expected torch\.float32"):
        load_into(Toy(), tensors)


def test_other_precisions_are_taken_as_float32():
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in authors().items()}
    network = Toy()
    load_into(network, tensors)
    assert network.tail.weight.dtype == torch.float32
    assert same(network, tensors)


def test_weights_in_half_precision_are_half_as_large_and_nearly_the_same(tmp_path, monkeypatch):
    network = tiny("crunet_mr")
    facts = WeightsFacts(method="crunet_mr", licence="CC0", range=TrainingRange.parse({"acceleration": [2, 8]}))
    other = write_weights(network, facts, "other", tmp_path)
    whole = write_weights(network, facts, "mine", tmp_path)
    size = whole.file.stat().st_size
    halved = halve(whole)
    assert halved == dataclasses.replace(whole, sha256=hashlib.sha256(whole.file.read_bytes()).hexdigest())
    assert 0.4 * size < whole.file.stat().st_size < 0.65 * size
    assert {tensor.dtype for tensor in load_file(whole.file).values()} == {torch.float16}
    with safe_open(whole.file, "pt") as now, safe_open(other.file, "pt") as before:
        assert now.metadata() == before.metadata() != {}
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    assert (find_weights("crunet_mr", "mine"), find_weights("crunet_mr", "other")) == (halved, other)
    for name, tensor in load_network(halved, "cpu").state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, network.state_dict()[name].half().float())
    assert halve(halved) == halved
    with pytest.raises(ModelError, match="not those of the manifest"):
        halve(whole)


def test_numbers_too_large_for_half_precision_stay_as_they_are(tmp_path):
    network = tiny("crunet_mr")
    with torch.no_grad():
        next(iter(network.parameters())).view(-1)[0] = 1e5
    entry = write_weights(network, WeightsFacts(method="crunet_mr"), "mine", tmp_path)
    with pytest.raises(ModelError, match=r"'mine'.*does not fit into half precision"):
        halve(entry)
    assert load_network(entry, "cpu") is not None


def test_a_long_chain_of_names_is_no_prefix():
    assert match(Toy(), {"a." * 100_000: torch.ones(1)}).prefix == ""


# --- configuration ----------------------------------------------------------------------------------------------------


def test_fields_are_read_from_text():
    text = {
        "channels": " 4 ",
        "sizes": "7, 9",
        "extra": "(0.5,1e-3,)",
        "shared": "False",
        "kind": "XT",
        "gain": "2",
        "limit": "None",
        "title": "x",
    }
    expected = ToyConfig(
        channels=4, sizes=(7, 9), extra=(0.5, 1e-3), shared=False, kind="XT", gain=2.0, limit=None, title="x"
    )
    assert parse_config("toy", text) == expected
    assert parse_config("toy", {"limit": "3"}).limit == 3


@given(
    st.builds(
        ToyConfig,
        channels=st.integers(1, 99),
        sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
        extra=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1).map(tuple),
        shared=st.booleans(),
        kind=st.sampled_from(["XF", "XT"]),
        gain=st.floats(allow_nan=False),
        limit=st.none() | st.integers(),
    )
)
def test_a_configuration_survives_yaml_and_text(config):
    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(config).items()}
    assert parse_config("toy", yaml.safe_load(yaml.safe_dump(fields))) == config
    assert parse_config("toy", vars(config)) == config
    assert parse_config("toy", {key: str(value) for key, value in vars(config).items()}) == config


WRONG = {
    "unknown": ({"width": 3}, "no field 'width'; there are channels, blocks, sizes"),
    "text for a number": ({"channels": "many"}, "'channels' of the network of toy must be a whole number, got 'many'"),
    "fraction": ({"channels": 1.5}, "must be a whole number"),
    "truth for a number": ({"channels": True}, "must be a whole number"),
    "nothing": ({"channels": None}, "must be a whole number"),
    "list": ({"channels": [3]}, "must be a whole number"),
    "too few": ({"sizes": "3"}, "numbers with commas between them"),
    "too many": ({"sizes": [1, 2, 3]}, "numbers with commas between them"),
    "nested": ({"sizes": [[1], 2]}, "numbers with commas between them"),
    "empty": ({"extra": ""}, "numbers with commas between them"),
    "no truth": ({"shared": "maybe"}, "true or false"),
    "no choice": ({"kind": "3D"}, "one of XF, XT"),
    "refused by the configuration": ({"blocks": 0}, "cannot have .*at least one block"),
    "refused": ({"channels": 2000}, "cannot be built with .*too wide"),
    "impossible": ({"channels": -1}, "cannot be built with"),
}


@pytest.mark.parametrize(("config", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_configuration_is_reported(config, message):
    with pytest.raises(SettingsError, match=message):
        build_network("toy", config)


def test_methods_without_a_network_have_no_weights(tmp_path):
    with pytest.raises(
        ModelError, match="cg_sense has no network and needs no weights; of those with networks there are"
    ):
        import_weights("cg_sense", tmp_path / "a.pth")
    with pytest.raises(ModelError, match="there is no method 'magic'"):
        import_weights("magic", tmp_path / "a.pth")


# --- keeping ----------------------------------------------------------------------------------------------------------


def test_weights_are_imported_found_and_loaded(tmp_path):
    tensors = authors()
    entry, report = import_weights("toy", saved(tmp_path / "a.pth", {"state_dict": tensors}))
    assert report.complete
    assert entry.file == user_folder() / "toy.safetensors"
    assert entry.source == "imported from a.pth"
    assert (entry.name, entry.range, entry.input_peak, entry.window, entry.licence) == ("toy", None, 1.0, 0, "")
    assert find_weights("toy") == entry
    assert hashlib.sha256(entry.file.read_bytes()).hexdigest() == entry.sha256
    network = load_network(entry, "cpu")
    assert isinstance(network, Toy)
    assert same(network, tensors)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert network.window.tolist() == [1, 1]


def test_the_file_has_every_tensor_once_by_our_names_and_says_what_it_is(tmp_path):
    tensors = {key: value.double() if value.is_floating_point() else value for key, value in authors().items()}
    entry, _ = import_weights("toy", saved(tmp_path / "a.pth", tensors))
    found = load_file(entry.file)
    expected = {name for name, _ in Toy().named_parameters()} | {"steps"}
    assert found.keys() == expected
    assert {found[name].dtype for name in expected - {"steps"}} == {torch.float32}
    with safe_open(entry.file, "pt") as file:
        facts = json.loads(file.metadata()["cinestream"])
    assert facts["method"] == "toy"
    assert parse_config("toy", facts["config"]) == ToyConfig()


def test_facts_and_configuration_are_kept(tmp_path):
    config = ToyConfig(channels=4, sizes=(3, 3), kind="XT")
    trained = TrainingRange(acceleration=(2, 8))
    facts = {"range": trained, "input_peak": 2.0, "window": 9, "licence": "MIT", "source": "here", "notes": "well"}
    entry, _ = import_weights(
        "toy",
        saved(tmp_path / "a.pth", authors(Toy(config))),
        name="wide",
        folder=tmp_path / "w",
        config={"channels": "4", "sizes": "3,3", "kind": "XT"},
        **facts,
    )
    assert {name: getattr(entry, name) for name in facts} == facts
    assert entry.file == tmp_path / "w" / "wide.safetensors"
    assert entry.config == {
        key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(config).items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "w"))
        assert find_weights("toy", "wide") == entry
    assert load_network(entry, torch.device("cpu")).config == config


def test_the_same_weights_give_the_same_file_and_an_export_comes_back(tmp_path):
    tensors = authors()
    save_file({f"module.{key}": value for key, value in tensors.items()}, tmp_path / "b.safetensors")
    first, _ = import_weights("toy", saved(tmp_path / "a.pth", tensors), name="first")
    second, _ = import_weights("toy", tmp_path / "b.safetensors", name="second")
    third, report = import_weights("toy", first.file, name="third")
    assert report.naming == "own"
    assert first.sha256 == second.sha256 == third.sha256
    again, _ = import_weights("toy", first.file, name="first")
    assert again.sha256 == first.sha256


def filled_toy(seed=0, **config):
    network = Toy(ToyConfig(**config))
    authors(network, seed)
    return network


def test_weights_of_a_network_are_written_found_and_loaded(tmp_path):
    network = filled_toy(channels=4)
    facts = WeightsFacts(method="toy", config={"channels": 9}, window=8, source="here", training={"steps": 5})
    entry = write_weights(network, facts, "mine", user_folder())
    assert find_weights("toy", "mine") == entry
    assert (entry.config["channels"], entry.window, entry.source, entry.training) == (4, 8, "here", {"steps": 5})
    assert hashlib.sha256(entry.file.read_bytes()).hexdigest() == entry.sha256
    loaded = load_network(entry, "cpu")
    for key, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor)
    assert network.training  # and the network itself is left alone
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_same_weights_are_written_as_the_same_bytes(tmp_path):
    facts = WeightsFacts(method="toy")
    files = [
        write_weights(filled_toy(seed), facts, name, tmp_path / folder).file.read_bytes()
        for seed, name, folder in ((0, "a", "x"), (0, "b", "x"), (0, "a", "y"), (1, "a", "z"))
    ]
    assert files[0] == files[1] == files[2] != files[3]


def test_weights_of_that_name_are_replaced_and_foreign_files_are_not(tmp_path):
    facts = WeightsFacts(method="toy")
    first = write_weights(filled_toy(0), facts, "a", tmp_path)
    second = write_weights(filled_toy(1), facts, "a", tmp_path)
    assert first.sha256 != second.sha256
    assert load_network(second, "cpu").tail.weight.equal(filled_toy(1).tail.weight)
    (tmp_path / "b.safetensors").write_bytes(b"mine")
    with pytest.raises(SettingsError, match=r"b\.safetensors exists and is not in .*manifest\.yaml"):
        write_weights(filled_toy(), facts, "b", tmp_path)
    assert (tmp_path / "b.safetensors").read_bytes() == b"mine"
    with pytest.raises(SettingsError, match="letters, digits"):
        write_weights(filled_toy(), facts, "../c", tmp_path)


def test_known_checkpoints_bring_their_facts_and_the_arguments_win(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.pth", authors(Toy(ToyConfig(channels=4, gain=3.0))))
    folder = tmp_path / "package"
    folder.mkdir()
    facts = {
        "method": "toy",
        "config": {"channels": 4, "gain": 3.0},
        "range": {"acceleration": [4, 8]},
        "input_peak": 5.0,
        "window": 12,
        "licence": "BSD",
        "source": "there",
        "notes": "good",
    }
    (folder / "known.yaml").write_text(yaml.safe_dump({content_digest(read_checkpoint(path)): facts}))
    monkeypatch.setattr("recon_core.weights.manifest._packaged", lambda: folder)
    entry, _ = import_weights("toy", path)
    assert entry.range == TrainingRange(acceleration=(4, 8))
    assert (entry.input_peak, entry.window, entry.licence, entry.source) == (5.0, 12, "BSD", "there")
    assert (entry.config["channels"], entry.config["gain"], entry.notes) == (4, 3.0, "good")
    entry, _ = import_weights("toy", path, config={"gain": 1}, input_peak=1.0, window=0, licence="MIT", source="me")
    assert (entry.config["channels"], entry.config["gain"]) == (4, 1.0)
    assert (entry.input_peak, entry.window, entry.licence, entry.source) == (1.0, 0, "MIT", "me")
    with pytest.raises(ModelError, match="is known as weights of toy, not of other"):
        import_weights("other", path)


def test_a_checkpoint_that_does_not_fit_leaves_nothing_behind(tmp_path):
    path = saved(tmp_path / "a.pth", {"tail.weight": torch.ones(5, 2)})
    with pytest.raises(ModelError, match=r"a\.pth: the checkpoint does not fit Toy(.|\n)*missing: "):
        import_weights("toy", path)
    assert not user_folder().exists()


def test_a_file_that_the_manifest_does_not_speak_for_is_not_replaced(tmp_path):
    save_file(authors(), tmp_path / "toy.safetensors")
    before = (tmp_path / "toy.safetensors").read_bytes()
    with pytest.raises(SettingsError, match=r"toy\.safetensors exists and is not in .*manifest\.yaml"):
        import_weights("toy", tmp_path / "toy.safetensors", folder=tmp_path)
    assert (tmp_path / "toy.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["a/b", "../a", ".a", "a b"])
def test_names_that_are_paths_are_refused(tmp_path, name):
    with pytest.raises(SettingsError, match="letters, digits"):
        import_weights("toy", saved(tmp_path / "a.pth", authors()), name=name)


def test_a_full_disk_leaves_the_old_weights(tmp_path, monkeypatch):
    old, _ = import_weights("toy", saved(tmp_path / "a.pth", authors()))
    path = saved(tmp_path / "b.pth", authors(seed=1))

    def full(self, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(ResourceError, match="No space left on device"):
            import_weights("toy", path)
    assert same(load_network(find_weights("toy"), "cpu"), authors())
    assert sorted(file.name for file in user_folder().iterdir()) == ["manifest.yaml", "toy.safetensors"]
    new, _ = import_weights("toy", path)
    assert new.sha256 != old.sha256
    assert same(load_network(find_weights("toy"), "cpu"), authors(seed=1))


@pytest.fixture
def entry(tmp_path):
    return import_weights("toy", saved(tmp_path / "a.pth", authors()))[0]


def test_a_damaged_file_is_refused(entry):
    content = bytearray(entry.file.read_bytes())
    content[-1] ^= 1
    entry.file.write_bytes(content)
    with pytest.raises(ModelError, match=r"are not those of the manifest: expected sha256 .* import it again"):
        load_network(entry, "cpu")


def test_a_file_that_is_gone_is_reported(entry):
    entry.file.unlink()
    with pytest.raises(ModelError, match="cannot read the weights 'toy'"):
        load_network(entry, "cpu")


WRONG_ENTRIES = {
    "other width": ({"config": {"channels": 4}}, "has other sizes"),
    "unknown field": ({"config": {"width": 4}}, "no field 'width'"),
    "other method": ({"method": "crnn_mri"}, "weights 'toy'.*does not fit CRNNMRI"),
    "classical method": ({"method": "cg_sense"}, "has no network"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG_ENTRIES.values(), ids=WRONG_ENTRIES)
def test_an_entry_that_does_not_fit_its_file_is_refused(entry, changes, message):
    with pytest.raises(ModelError, match=message):
        load_network(dataclasses.replace(entry, **{"config": {}, **changes}), "cpu")


def test_a_file_with_the_authors_names_is_not_loaded_as_ours(entry):
    """Names could mean another tensor there."""
    save_file(authors(), entry.file)
    sha256 = hashlib.sha256(entry.file.read_bytes()).hexdigest()
    with pytest.raises(ModelError, match="does not fit Toy"):
        load_network(dataclasses.replace(entry, sha256=sha256), "cpu")
    entry.file.write_bytes(b"nonsense")
    sha256 = hashlib.sha256(b"nonsense").hexdigest()
    with pytest.raises(ModelError, match="the weights 'toy'"):
        load_network(dataclasses.replace(entry, sha256=sha256), "cpu")


def test_networks_are_loaded_in_inference_mode_as_well(entry):
    with torch.inference_mode():
        assert same(load_network(entry, "cpu"), authors())


def test_the_published_crnn_mri_weights_are_the_same_from_either_file(tmp_path):
    existing(REAL)
    files = [REAL / f"crnn_mri_d5_c5.{suffix}" for suffix in ("pth", "safetensors")]
    first, second = map(read_checkpoint, files)
    assert content_digest(first) == content_digest(second)
    facts = known_weights(content_digest(first))
    assert facts.method == "crnn_mri"
    (pth, report), (safe, _) = (import_weights("crnn_mri", path, name=path.suffix[1:]) for path in files)
    assert (len(report.matched), report.naming, report.missing, report.unused) == (20, "authors", (), ())
    assert pth.file.read_bytes() == safe.file.read_bytes()
    assert pth.licence == facts.licence
    network = load_network(pth, "cpu")
    assert sum(parameter.numel() for parameter in network.parameters()) == 297_794
    state = dict(network.named_parameters())
    assert all(torch.equal(state[key], first[network.authors_key(key)]) for key in state)


# --- what the authors of dSTDM save -----------------------------------------------------------------------------------


def test_of_a_trainers_checkpoint_the_running_average_is_taken(tmp_path):
    network = tiny("dstdm")
    model = {network.authors_key(key): value.clone() for key, value in network.state_dict().items()}
    average = [value + 1 for value in model.values()]
    document = {
        "model": {**model, "sigmas": torch.ones(100, dtype=torch.float64)},
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": average},
        "optimizer": {"state": {}},
        "step": 7,
    }
    torch.save(document, tmp_path / "checkpoint_50.pth")
    path = tmp_path / "checkpoint_50.pth"
    entry, report = import_weights("dstdm", path, folder=tmp_path / "weights", config=TINY["dstdm"])
    assert report.complete
    loaded = load_network(entry, "cpu").state_dict()
    for key, value in network.state_dict().items():
        torch.testing.assert_close(loaded[key], value + 1)
    assert "academic use only" in entry.licence
    document["ema"]["shadow_params"] = average[1:]
    torch.save(document, path)
    with pytest.raises(ModelError, match="running average"):
        import_weights("dstdm", path, folder=tmp_path / "weights", config=TINY["dstdm"])
