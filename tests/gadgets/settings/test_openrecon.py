"""The label of an OpenRecon image: what it says, what a scanner rejects; every value that it offers gives images."""

import base64
import copy
import functools
import json
from decimal import Decimal
from pathlib import Path

import pytest

from gadgets import __version__
from gadgets.commands.main import main
from gadgets.connection.server import SharedEngine
from gadgets.connection.session import SessionOptions
from gadgets.settings import openrecon
from gadgets.settings.fire import parse_json_parameters
from gadgets.settings.openrecon import check_label, encode_label, label_text, make_label, read_label, semantic_version
from gadgets.settings.pipelines import find_pipeline
from gadgets.settings.settings import FIELDS, Settings, apply
from gadgets.simulation import ScanPlan, simulate
from gadgets.wire.messages import Close, ConfigFile, Header, Text
from recon_core.errors import SettingsError
from recon_core.methods import METHODS
from tests.helpers.peers import serving, talk

pytestmark = pytest.mark.usefixtures("_coil_maps_once")

SCHEMA = Path(__file__).parent / "openrecon.schema.json"
LABEL = make_label()
PARAMETERS = {parameter["id"]: parameter for parameter in LABEL["parameters"]}


# --- what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("number", [float, Decimal])
def test_it_keeps_to_the_schema_however_numbers_are_read(gpu, number):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"), parse_float=number)
    label = json.loads(label_text(make_label(gpu=gpu)), parse_float=number)
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(label)
    label["parameters"][0]["id"] = "con_fig"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate(label)


@pytest.mark.parametrize("gpu", [False, True])
def test_a_scanner_has_nothing_to_reject(gpu):
    label = make_label(gpu=gpu)
    assert check_label(label) == []
    assert label["reconstruction"]["can_use_gpu"] is gpu
    assert read_label(encode_label(label)) == label
    assert "\n" not in encode_label(label)
    assert read_label(label_text(label)) == label


def test_it_follows_the_version():
    assert LABEL["general"]["version"] == semantic_version(__version__)
    assert openrecon.package_name(LABEL) == f"OpenRecon_Cinestream_Cinestream_V{semantic_version(__version__)}"


def test_parameters_are_the_settings():
    for name, parameter in PARAMETERS.items():
        if name == "config":
            continue
        found = parse_json_parameters(json.dumps({"parameters": {name: parameter["default"]}}))
        assert found.unknown == ()
        (setting,) = found.settings
        assert parameter["default"] == FIELDS[setting].default
        assert parameter["information"]["en"] == FIELDS[setting].help


def test_methods_are_pipelines_and_say_their_method():
    offered = [value["id"] for value in PARAMETERS["config"]["values"]]
    for name in offered:
        assert find_pipeline(name).settings.method == name
    assert set(METHODS) - set(offered) == {"atlf_net"}


@pytest.mark.parametrize(
    ("python", "semantic"),
    [
        ("0.1.0", "0.1.0"),
        ("1.2", "1.2.0"),
        ("0.1.0.dev3", "0.1.0-dev.3"),
        ("1.0.0rc1", "1.0.0-rc.1"),
        ("1.0.0b2.dev4", "1.0.0-b.2.dev.4"),
        ("1.0.0.post1", "1.0.0+post.1"),
        ("1.0.0+site.7", "1.0.0+site.7"),
        ("2026.01.2", "2026.1.2"),
    ],
)
def test_versions(python, semantic):
    assert semantic_version(python) == semantic
    changed = copy.deepcopy(LABEL)
    changed["general"]["version"] = semantic
    assert check_label(changed) == []


@pytest.mark.parametrize("version", ["", "v1.0", "1.2.3.4", "one"])
def test_versions_that_are_none(version):
    with pytest.raises(SettingsError, match="version"):
        semantic_version(version)


# --- what a scanner rejects -------------------------------------------------------------------------------------------


def spoiled(*path, to):
    label = copy.deepcopy(make_label(gpu=True))
    place = label
    for key in path[:-1]:
        place = place[key] if not isinstance(place, list) else next(entry for entry in place if entry["id"] == key)
    place[path[-1]] = to
    return label


REJECTED = {
    "space in the id": (spoiled("general", "id", to="Cine Stream"), "only letters and digits"),
    "underscore in the vendor": (spoiled("general", "vendor", to="my_lab"), "vendor is 'my_lab'"),
    "name unlike the id": (spoiled("general", "name", to={"en": "Other"}), "differ"),
    "version of two numbers": (spoiled("general", "version", to="0.1"), "not semantic"),
    "version with v": (spoiled("general", "version", to="v0.1.0"), "not semantic"),
    "Python's dev version": (spoiled("general", "version", to="0.1.0.dev1"), "not semantic"),
    "protocol": (
        spoiled("reconstruction", "transfer_protocol", to={"protocol": "ISMRMRD", "version": "1.4.2"}),
        "1.4.1",
    ),
    "injector": (spoiled("reconstruction", "injector", to="raw"), "raw to raw"),
    "port": (spoiled("reconstruction", "port", to="9002"), "port"),
    "no cores": (spoiled("reconstruction", "min_count_required_cpu_cores", to=0), "cpu_cores"),
    "two of one name": (spoiled("parameters", "gating", "id", to="maps"), "two parameters are called 'maps'"),
    "underscore in a name": (spoiled("parameters", "gfactor", "id", to="g_factor"), "letters and digits only"),
    "no config": (spoiled("parameters", "config", "id", to="method"), "config of type choice"),
    "default is no value": (spoiled("parameters", "maps", "default", to="other"), "none of the values"),
    "default beyond": (spoiled("parameters", "iterations", "default", to=201), "does not lie within"),
    "limits swapped": (spoiled("parameters", "iterations", "minimum", to=300), "does not lie within"),
    "33 bits": (spoiled("parameters", "iterations", "maximum", to=2**31), "32 bits"),
    "half an int": (spoiled("parameters", "iterations", "default", to=1.5), "32 bits"),
    "off the grid": (spoiled("parameters", "kspacefilter", "default", to=0.25), "multiple of 0.1"),
    "the trap": (spoiled("parameters", "kspacefilter", "default", to=0.3), "multiple of 0.1"),
    "endless": (spoiled("parameters", "iterations", "maximum", to=float("inf")), "must be numbers"),
    "not a number": (spoiled("parameters", "kspacefilter", "default", to=float("nan")), "must be numbers"),
    "too long": (spoiled("parameters", "kspacefilter", "maximum", to=10**400), "must be numbers"),
    "long unit": (spoiled("parameters", "iterations", "unit", to={"en": "iter"}), "one to three characters"),
    "unknown type": (spoiled("parameters", "iterations", "type", to="float"), "no type 'float'"),
    "not true or false": (spoiled("parameters", "gfactor", "default", to="false"), "true or false"),
    "a part too many": ({**LABEL, "preconditions": []}, "exactly the parts"),
    "a field missing": ({**LABEL, "general": {}}, "missing"),
    "no object": ([LABEL], "exactly the parts"),
}
REJECTED["a GPU that is not used"] = (
    {**LABEL, "reconstruction": {**LABEL["reconstruction"], "min_count_required_gpus": 1}},
    "can_use_gpu is false",
)
REJECTED["too many"] = ({**LABEL, "parameters": LABEL["parameters"] * 2}, "14 at most")


@pytest.mark.parametrize(("label", "words"), REJECTED.values(), ids=REJECTED)
def test_what_a_scanner_rejects_is_found(label, words, tmp_path, capsys):
    found = "\n".join(check_label(label))
    assert words in found
    path = tmp_path / "label.json"
    path.write_text(json.dumps(label), encoding="utf-8")
    status = main(["openrecon-label", "--check", str(path)])
    assert status == (2 if isinstance(label, list) else 1)
    assert words in capsys.readouterr().err or isinstance(label, list)


# --- the command ------------------------------------------------------------------------------------------------------


def test_command(tmp_path, capsys):
    assert main(["openrecon-label"]) == 0
    assert json.loads(capsys.readouterr().out) == LABEL
    assert main(["openrecon-label", "--base64", "--gpu"]) == 0
    assert json.loads(base64.b64decode(capsys.readouterr().out)) == make_label(gpu=True)
    path = tmp_path / "label.txt"
    assert main(["openrecon-label", "--base64", "-o", str(path)]) == 0
    assert openrecon.package_name(LABEL) in capsys.readouterr().out
    assert main(["openrecon-label", "--check", str(path)]) == 0
    assert "nothing" in capsys.readouterr().out


def test_command_that_cannot(tmp_path, capsys):
    (tmp_path / "label").write_text("no label", encoding="utf-8")
    assert main(["openrecon-label", "--check", str(tmp_path / "label")]) == 2
    assert "neither" in capsys.readouterr().err
    assert main(["openrecon-label", "--check", str(tmp_path / "none")]) == 1
    assert main(["openrecon-label", "-o", str(tmp_path / "none" / "label")]) == 1
    assert "cannot write" in capsys.readouterr().err


# --- at the scanner ---------------------------------------------------------------------------------------------------


def values_of(parameter):
    """The default and the extremes, or all there is to choose."""
    if parameter["type"] == "choice":
        return [value["id"] for value in parameter["values"]]
    if parameter["type"] == "boolean":
        return [False, True]
    return sorted({parameter["default"], parameter["minimum"], parameter["maximum"]})


OFFERED = [(name, value) for name, parameter in PARAMETERS.items() for value in values_of(parameter)]


@functools.cache
def scan(gating):
    plan = ScanPlan(
        matrix_x=48, matrix_y=32, frames=4, coils=4, acs_lines=10, acceleration=2, gating=gating, segments=4
    )
    made = simulate(plan)
    return made.header, tuple(made.items())


@pytest.fixture(scope="module")
def scanner():
    """The server as the image starts it, with the real engine."""
    options = SessionOptions(aliases={"openrecon": "cg_sense"}, overrides={"whiten": "false"})
    engine = SharedEngine()()
    with serving(engine, options) as server:
        yield server


@pytest.mark.parametrize(
    ("name", "value", "form"),
    [
        *[pytest.param(name, value, lambda value: value, id=f"{name}-{value}") for name, value in OFFERED],
        *[pytest.param(name, value, str, id=f"{name}-{value}-text") for name, value in dict(OFFERED).items()],
    ],
)
def test_every_offered_value_gives_images(scanner, name, value, form):
    """The scan comes out whole with each value, and with one of each parameter as text."""
    header, items = scan("retrospective" if name == "gatedframes" or value == "retrospective" else "prospective")
    parameters = {each: form(parameter["default"]) for each, parameter in PARAMETERS.items()}
    parameters[name] = form(value)
    sent = Text(json.dumps({"version": "1.1.0", "parameters": parameters}))
    answer = talk(scanner, ConfigFile("openrecon"), Header(header), sent, *items, Close())
    assert answer.complaints("client") == []
    assert answer.closed
    assert not [text for text in answer.texts if "parameter" in text or "setting" in text]
    frames = parameters["gatedframes"] if name == "gatedframes" and value else 4
    images = [image for image in answer.images if image.header["image_series_index"] == 1]
    assert len(images) == int(frames)


def test_offered_values_are_allowed():
    for name, value in OFFERED:
        if name != "config":
            for sent in (value, str(value)):  # scanners send values as they are or as text
                found = parse_json_parameters(json.dumps({"parameters": {name: sent}}))
                (setting,) = found.settings
                assert FIELDS[setting].of(apply(Settings(), found.settings)) == value
