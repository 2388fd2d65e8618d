import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gadgets.commands.arguments import settings_help
from gadgets.settings.fire import parse_json_parameters
from gadgets.settings.pipelines import (
    MODULE,
    TARGET,
    Pipeline,
    find_pipeline,
    is_pipeline,
    list_pipelines,
    parse_configuration,
)
from gadgets.settings.settings import (
    FIELDS,
    GatingSettings,
    Settings,
    apply,
    find_setting,
    grouped_settings,
    parse_assignments,
)
from recon_core.errors import SettingsError
from recon_core.methods import METHODS

PACKAGED = list_pipelines()
ALONE = [name for name, item in PACKAGED.items() if not item.needs_gadgetron]
SERVER = ("127.0.0.1", 9012)
AMONG_GADGETS = [name for name in PACKAGED if name not in ALONE]
EXECUTE = f'<execute name="{MODULE}" target="{TARGET}" type="python"/>'
BILLION_LAUGHS = "<!DOCTYPE a [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'><!ENTITY c '&b;&b;&b;&b;&b;'>]>"


def pipeline(action=EXECUTE, configuration="<configuration><method>zero_filled</method></configuration>", rest=""):
    return (
        f"<configuration><version>2</version><readers/><writers/><stream><external>{action}{configuration}</external>"
        f"{rest}</stream></configuration>"
    )


# --- values -----------------------------------------------------------------------------------------------------------


def test_every_setting_has_a_default_that_it_allows():
    for setting in FIELDS.values():
        assert setting.read(setting.default) == setting.default
        assert setting.read(str(setting.default)) == setting.default
        assert setting.help


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("iterations", "15", 15),
        ("iterations", " 15\n", 15),
        ("iterations", 15.0, 15),
        ("iterations", "1e2", 100),
        ("regularization", "2.5e-3", 2.5e-3),
        ("regularization", 1, 1.0),
        ("whiten", "true", True),
        ("whiten", "False", False),
        ("whiten", " yes ", True),
        ("whiten", 0, False),
        ("whiten", True, True),
        ("method", " zero_filled ", "zero_filled"),
        ("description", "", ""),
        ("description", 7, "7"),
    ],
)
def test_values_from_text_and_json(name, value, expected):
    converted = FIELDS[name].read(value)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("itertions", "3", r"'itertions'; did you mean iterations or .*cinestream pipelines lists all"),
        ("", "3", "unknown setting"),
        ("iterations", "many", "must be a whole number from 1 to 1000, got 'many'"),
        ("iterations", "2.5", "must be a whole number"),
        ("iterations", "", "must be a whole number"),
        ("iterations", "nan", "must be a whole number"),
        ("iterations", "1e999", "must be a whole number"),
        ("iterations", 10**400, "must be a whole number"),
        ("iterations", True, "must be a whole number"),
        ("iterations", None, "must be a whole number"),
        ("iterations", [3], "must be a whole number"),
        ("iterations", "0", "must be a whole number from 1 to 1000, got '0'"),
        ("iterations", 1001, "from 1 to 1000, got 1001"),
        ("regularization", "-1e-9", "must be a number from 0, got"),
        ("regularization", float("nan"), "must be a number"),
        ("series", 65510, "from 1 to 65509"),
        ("series_by", "scan,slice", "must be one of scan, slice"),
        ("extra_series", "none,fallback", "none or something"),
        ("extra_series", "beside", "some of, none, zero_filled, fallback, difference, uncertainty; got 'beside'"),
        ("extra_series", "", "some of, none"),
        ("ct_policy", "guess", "must be one of error, fallback"),
        ("ct_min_coverage", "1.5", "a number from 0 to 1, got"),
        ("whiten", "maybe", "must be true or false"),
        ("whiten", "", "must be true or false"),
        ("whiten", 2, "must be true or false"),
        ("whiten", None, "must be true or false"),
        ("description", None, "must be a text"),
        ("description", {"a": 1}, "must be a text"),
        ("method", "magic", "must be one of .*cg_sense.*got 'magic'"),
        ("method", "CG_SENSE", "must be one of"),
        ("output", "phase", "must be one of magnitude, complex"),
        ("time_axis", "slice", "must be one of auto, phase, repetition"),
    ],
)
def test_values_that_are_refused(name, value, message):
    with pytest.raises(SettingsError, match=message):
        find_setting(name).read(value)


@given(
    name=st.sampled_from(list(FIELDS)), value=st.one_of(st.text(), st.floats(), st.integers(), st.booleans(), st.none())
)
@settings(max_examples=200)
def test_any_value_is_converted_or_refused(name, value):
    try:
        converted = FIELDS[name].read(value)
    except SettingsError as error:
        assert repr(name) in str(error)  # noqa: PT017 - either is right
    else:
        assert type(converted) is type(FIELDS[name].default)
        assert FIELDS[name].read(converted) == converted


def test_apply_replaces_some_and_keeps_the_rest():
    base = Settings.of(series=7)
    changed = apply(base, {"iterations": "3"})
    assert changed == Settings.of(series=7, iterations=3)
    assert base.cg_sense.iterations == FIELDS["iterations"].default


def test_assignments():
    assert parse_assignments(["iterations=3", " description =a=b", "method="]) == {
        "iterations": "3",
        "description": "a=b",
        "method": "",
    }
    with pytest.raises(SettingsError, match="key=value, got 'iterations'"):
        parse_assignments(["iterations"])


# names in the XML of users: they must stay
FLAT = [
    "method", "fallback", "weights", "outside_range", "extra_series", "window", "precision", "sampler",
    "sampler_steps", "seed", "samples", "consistency_repetitions", "consistency_iterations", "start_noise",
    "iterations", "signal_prior", "regularization", "tolerance", "warm_start", "grappa_calibration",
    "low_rank_weight", "sparse_weight", "low_rank_sparse_iterations", "low_rank_sparse_momentum",
    "kt_rounds", "kt_samples", "maps",
    "map_neighbourhood", "map_refinements", "map_kernel", "map_calibration", "map_threshold", "map_crop",
    "map_soft", "partial_fourier", "kspace_filter", "g_factor", "units", "device", "implementation", "whiten",
    "whitened", "time_axis", "gating", "gated_frames", "arrhythmia_tolerance", "rr_stretch", "trigger_source",
    "gated_output", "stamp_tick", "center_line", "oversampling", "realtime", "realtime_window", "lines_per_frame",
    "virtual_coils", "coil_energy", "output", "scale", "emit", "forward", "window_center", "window_width",
    "orientation", "series", "series_by", "description", "preview", "ct_path", "ct_transform",
    "ct_transform_space", "ct_frame", "ct_window_low", "ct_window_high", "ct_slab_samples", "ct_min_coverage",
    "ct_policy", "emit_fused",
]  # fmt: skip


def other_value(setting):
    """A value that is not the default."""
    allowed = setting.allowed
    if allowed.names:
        return next(name for name in allowed.names if name != setting.default)
    if isinstance(setting.default, bool):
        return not setting.default
    if isinstance(setting.default, str):
        return "some"
    return allowed.maximum if allowed.maximum not in (None, setting.default) else setting.default / 2 or 3


def test_every_flat_name_stays_a_setting():
    assert len(FLAT) == 78
    assert set(FLAT) <= set(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_flat_and_dotted_names_set_the_same(name):
    setting = FIELDS[name]
    value = other_value(setting)
    if name == "ct_window_low":
        value = -300.0  # below ct_window_high
    changed = apply(Settings(), {name: str(value)})
    assert setting.of(changed) == value != setting.of(Settings())
    assert changed == apply(Settings(), parse_assignments([f"{setting.path}={value}"]))
    assert changed == parse_configuration(f"<configuration><{setting.path}>{value}</{setting.path}></configuration>")
    assert find_setting(setting.path) is setting


def test_groups_are_checked_when_they_are_made():
    with pytest.raises(SettingsError, match="'gated_frames' must be a whole number from 0 to 4096"):
        GatingSettings(frames=-1)
    with pytest.raises(SettingsError, match="'gated_frames' must be a whole number"):
        GatingSettings(frames="8")


def test_help_lists_the_settings_under_headings():
    text = settings_help()
    gating = text[text.index("\nRetrospective gating:\n") : text.index("\nReal time:\n")]
    assert "  gated_frames  (int, default 0)\n      frames of the cycle;" in gating
    assert all(f"\n{heading}:\n" in text for heading, _ in grouped_settings())


def test_described_settings_are_all_of_them():
    groups = dict(grouped_settings())
    assert [one.name for group in groups.values() for one in group] == list(FIELDS)
    assert (FIELDS["whiten"].kind, FIELDS["whiten"].default_text) == ("bool", "true")
    assert FIELDS["time_axis"].kind == "auto | phase | repetition"


# --- documents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " \n", '<?xml version="1.0"?>\n', "<?xml version='1.0' encoding='utf-8'?>"])
def test_no_configuration(text):
    """A Gadgetron whose external node has none sends the XML declaration alone."""
    assert parse_configuration(text) is None
    assert not is_pipeline(text)


ELEMENTS = "<iterations>7</iterations><output>complex</output>"
MIXED = '<configuration iterations="7"><output>complex</output></configuration>'
SPELLINGS = {
    "elements": f"<configuration>{ELEMENTS}</configuration>",
    "indented": f'<?xml version="1.0"?>\n<configuration>\n\t{ELEMENTS.replace("7", " 7 ")}\n</configuration>\n',
    "attributes": '<configuration iterations="7" output="complex"/>',
    "mixed": MIXED,
    "properties": '<configuration><property name="iterations" value="7"/><property name="output" value="complex"/>'
    "</configuration>",
    "long-properties": "<configuration><property><name>iterations</name><value>7</value></property>"
    "<property><name> output </name><value>complex</value></property></configuration>",
    "namespace": f'<configuration xmlns="http://gadgetron">{ELEMENTS}</configuration>',
    "comments": f"<configuration><!-- remark -->{ELEMENTS.replace('7', '7<!-- of 20 -->')}</configuration>",
    "whole": pipeline(configuration=MIXED),
    "connect": pipeline('<connect port="9012"/>', MIXED),
}


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_spellings_of_settings(text):
    assert parse_configuration(text) == Settings.of(iterations=7, output="complex")


def test_whole_and_bare_documents_are_distinguished():
    assert is_pipeline(pipeline())
    assert is_pipeline("<gadgetronStreamConfiguration/>")
    assert not is_pipeline("<configuration/>")
    assert not is_pipeline("<configuration><method>cg_sense</method></configuration>")


def test_empty_configurations_are_the_defaults():
    assert parse_configuration("<configuration/>") == Settings()
    assert parse_configuration('<?xml version="1.0"?>\n<configuration />\n') == Settings()
    assert parse_configuration(pipeline(configuration="")) == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<configuration><iteration>7</iteration></configuration>",
            "unknown setting 'iteration'; did you mean iterations",
        ),
        ('<configuration><property value="7"/></configuration>', "unknown setting ''"),
        ('<configuration iterations="x"/>', "whole number"),
        ("<configuration><iterations/></configuration>", "whole number from 1 to 1000, got ''"),
        ("<configuration><method>magic</method></configuration>", "one of"),
        (pipeline(configuration="<configuration><nonsense/></configuration>"), "unknown setting 'nonsense'"),
        ("<configuration>", "not XML"),
        ("cg_sense", "not XML"),
        ("\0", "not XML"),
        ("<settings/>", "version-2 pipeline"),
        (
            "<gadgetronStreamConfiguration><gadget/></gadgetronStreamConfiguration>",
            "got <gadgetronStreamConfiguration>",
        ),
        (pipeline('<execute name="os" target="system" type="python"/>'), "'os' 'system'.*only 'gadgets.external'"),
        (pipeline('<execute name="gadgets.external" target="os" type="python"/>'), "only 'gadgets.external'"),
        (pipeline("<execute/>"), "only 'gadgets.external'"),
        (pipeline('<execute name="os" target="system"/><connect port="9"/>'), "only 'gadgets.external'"),
        (pipeline(""), "neither <execute> nor <connect>"),
        (
            pipeline(rest="<gadget><dll>gadgetron_mricore</dll><classname>NoiseAdjustGadget</classname></gadget>"),
            "one <external> node.*<external>, <gadget> NoiseAdjustGadget",
        ),
        (pipeline(rest=f"<external>{EXECUTE}</external>"), "one <external> node"),
        ("<configuration><version>2</version><stream/></configuration>", "holds nothing"),
        ("<configuration><stream><parallel/></stream></configuration>", "holds <parallel>"),
        (BILLION_LAUGHS + "<configuration><description>&c;</description></configuration>", "DTD or entities"),
        ("<!DOCTYPE x SYSTEM 'file:///etc/passwd'><configuration/>", "DTD or entities"),
        ("<configuration>&c;</configuration>", "not XML"),
    ],
)
def test_documents_that_are_refused(text, message):
    with pytest.raises(SettingsError, match=message):
        parse_configuration(text)


# --- packaged pipelines -----------------------------------------------------------------------------------------------

CORE_READERS = {"AcquisitionReader", "WaveformReader", "ImageReader", "BufferReader", "IsmrmrdImageArrayReader"}


def test_every_ready_method_has_a_pipeline():
    assert {PACKAGED[name].settings.method for name in ALONE} == set(METHODS)
    assert set(METHODS) <= set(PACKAGED)


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_pipeline_is_a_gadgetron_document(name):
    root = ET.fromstring(PACKAGED[name].text)
    assert root.tag == "configuration"
    assert [child.tag for child in root] == ["version", "readers", "writers", "stream"]
    assert root.findtext("version") == "2"
    readers = {node.findtext("classname"): node.findtext("dll") for node in root.find("readers")}
    writers = {node.findtext("classname"): node.findtext("dll") for node in root.find("writers")}
    assert readers["AcquisitionReader"] == readers["WaveformReader"] == "gadgetron_core_readers"
    assert writers == {"ImageWriter": "gadgetron_core_writers"}
    assert set(readers) <= CORE_READERS
    (external,) = root.findall("stream/external")
    assert (len(root.find("stream")) == 1) == (name in ALONE)
    parts = [child.tag for child in external if child.tag not in ("readers", "writers")]
    assert parts == ["execute", "configuration"]
    assert external[0].attrib == {"name": MODULE, "target": TARGET, "type": "python"}
    assert "@" not in PACKAGED[name].text, "a Gadgetron takes it for a reference to a gadget's property"


# What gadgets take and give, and the properties that they have; gadgets leave everything else as it is.
GADGETS = {
    "NoiseAdjustGadget": ("Acquisition", "Acquisition", {"perform_noise_adjust", "pass_nonconformant_data"}),
    "AsymmetricEchoAdjustROGadget": ("Acquisition", "Acquisition", set()),
    "RemoveROOversamplingGadget": ("Acquisition", "Acquisition", set()),
    "AcquisitionAccumulateTriggerGadget": (
        "Acquisition",
        "AcquisitionBucket",
        {"trigger_dimension", "sorting_dimension", "n_acquisitions_before_trigger"},
    ),
    "BucketToBufferGadget": (
        "AcquisitionBucket",
        "Buffer",
        {"N_dimension", "S_dimension", "split_slices", "ignore_segment", "verbose"},
    ),
    "GenericReconFieldOfViewAdjustmentGadget": ("IsmrmrdImageArray", "IsmrmrdImageArray", {"verbose"}),
    "GenericReconImageArrayScalingGadget": (
        "IsmrmrdImageArray",
        "IsmrmrdImageArray",
        {
            "verbose",
            "use_constant_scalingFactor",
            "auto_scaling_only_once",
            "min_intensity_value",
            "max_intensity_value",
            "scalingFactor",
        },
    ),
    "ImageArraySplitGadget": ("IsmrmrdImageArray", "Image", set()),
    "ComplexToFloatGadget": ("Image", "Image", set()),
    "FloatToUShortGadget": ("Image", "Image", {"max_intensity", "min_intensity", "intensity_offset"}),
    "ImageFinishGadget": ("Image", "Image", set()),
}
READS_AND_WRITES = ("readers", "writers")
COUNTERS = {"", "average", "contrast", "phase", "repetition", "set", "segment", "slice"}


@pytest.mark.parametrize("name", AMONG_GADGETS)
def test_gadgets_and_cinestream_understand_each_other(name):
    root = ET.fromstring(PACKAGED[name].text)
    flowing = "Acquisition"
    for node in root.find("stream"):
        if node.tag == "external":
            classes = {part: [item.text for item in node.iterfind(f"{part}//classname")] for part in READS_AND_WRITES}
            assert {item.text for item in node.iterfind("readers//dll")} == {"gadgetron_core_readers"}
            assert {item.text for item in node.iterfind("writers//dll")} == {"gadgetron_core_writers"}
            assert f"{flowing}Writer" in classes["writers"], "else the data pass cinestream by"
            flowing = {"images": "Image", "image_array": "IsmrmrdImageArray"}[PACKAGED[name].node_settings.images.emit]
            assert f"{flowing}Reader" in classes["readers"], "else its images end the scan"
            # cinestream gives waveforms back
            assert "WaveformReader" in classes["readers"], "waveforms, those of buckets too, are passed on"
            continue
        assert node.tag == "gadget"
        assert [child.tag for child in node][:3] == ["name", "dll", "classname"]
        assert node.findtext("dll") == "gadgetron_mricore"
        takes, gives, known = GADGETS[node.findtext("classname")]
        assert takes == flowing
        flowing = gives
        properties = {item.get("name"): item.get("value") for item in node.iterfind("property")}
        assert set(properties) <= known
        for key, value in properties.items():
            if key.endswith("_dimension"):
                assert value in COUNTERS
            elif key.startswith(("split", "ignore", "use", "auto", "verbose")):
                assert value in ("true", "false"), "a Gadgetron knows no other truth"
            else:
                assert float(value) > 0
    assert flowing == "Image"
    names = [node.text for node in root.iterfind("stream/gadget/name")]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", AMONG_GADGETS)
def test_pipelines_among_gadgets_do_nothing_twice(name):
    chosen = PACKAGED[name].node_settings
    classes = [node.text for node in ET.fromstring(PACKAGED[name].text).iterfind("stream/gadget/classname")]
    assert chosen.whitening.done == ("NoiseAdjustGadget" in classes)
    assert (chosen.images.emit == "image_array") == ("ImageArraySplitGadget" in classes)
    assert name == f"{chosen.method}-stock-{'behind' if chosen.images.emit == 'image_array' else 'front'}"
    if "BucketToBufferGadget" in classes:
        assert "AsymmetricEchoAdjustROGadget" in classes, "else BucketToBuffer ends the scan of an asymmetric echo"


@pytest.mark.parametrize("name", AMONG_GADGETS)
def test_pipelines_among_gadgets_are_refused_outside_with_another_to_take(name):
    method = name.partition("-")[0]
    with pytest.raises(SettingsError, match=f"Gadget.*needs a Gadgetron.*here take {method}, which"):
        _ = find_pipeline(name).settings
    assert find_pipeline(method).settings.method == method


def test_a_pipeline_of_others_names_no_alternative():
    text = pipeline('<execute name="os" target="system"/>', rest="<gadget/>")
    with pytest.raises(SettingsError) as caught:
        parse_configuration(text)
    assert "here take" not in str(caught.value)


@pytest.mark.parametrize("count", [0, 2])
def test_settings_of_a_node_that_is_not_there_once(count):
    external = f"<external>{EXECUTE}</external>"
    text = f"<configuration><version>2</version><stream><gadget/><gadget/>{external * count}</stream></configuration>"
    with pytest.raises(SettingsError, match=f"odd holds {count} <external> nodes, expected one"):
        _ = Pipeline("odd", text).node_settings


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_pipeline_says_what_it_is_for(name):
    comment = PACKAGED[name].comment
    assert comment.startswith(f"cinestream: {name}")
    for word in ("Data:", "Needs:", "Makes:"):
        assert re.search(rf"^{word}", comment, re.MULTILINE)
    assert "cinestream serve" not in comment


@pytest.mark.parametrize("name", ALONE)
def test_the_twin_for_the_resident_server_differs_in_nothing_else(name):
    own, twin = PACKAGED[name], PACKAGED[name].through_server("10.1.2.3", 9999)
    assert own.settings == twin.settings == find_pipeline(f"{name}-connect").settings
    needs = re.search(r"^Needs:  (.*?)\nMakes:", twin.comment, re.MULTILINE | re.DOTALL)[1]
    assert needs.startswith("`cinestream serve` running on 10.1.2.3")
    assert ("weights" in needs) == bool(METHODS[own.settings.method].network)
    assert max(map(len, needs.splitlines())) <= 120
    before, after = (ET.fromstring(pipeline.text) for pipeline in (own, twin))
    (connect,) = after.iter("connect")
    assert connect.attrib == {"address": "10.1.2.3", "port": "9999"}
    assert [node.tag for node in before.iter()] == [node.tag.replace("connect", "execute") for node in after.iter()]


def test_the_twin_of_cg_sense_as_a_whole():
    expected = Path(__file__).with_name("cg_sense-connect.xml").read_text(encoding="utf-8")
    assert PACKAGED["cg_sense"].through_server("127.0.0.1", 9012) == Pipeline("cg_sense-connect", expected)


@pytest.mark.parametrize(("host", "port"), [("", 9012), ('a"b', 9012), ("@here", 9012), ("here", 0), ("here", 65536)])
def test_a_server_that_cannot_be(host, port):
    with pytest.raises(SettingsError, match="a name or an address"):
        PACKAGED["cg_sense"].through_server(host, port)


# --- by name ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["cg_sense", "cg_sense.xml", "cinestream_cg_sense", "cinestream_cg_sense.xml", "cinestream_cg_sense-connect.xml"],
)
def test_pipeline_by_name(name):
    assert find_pipeline(name).settings.method == "cg_sense"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "../cg_sense",
        "../../etc/passwd",
        "/etc/passwd",
        "pipelines/cg_sense",
        "..\\cg_sense",
        "C:\\cg_sense",
        "cg_sense\n",
        "cg_sense\0",
        "cg sense",
        "-rf",
        "µ",
    ],
)
def test_names_with_path_parts_are_refused(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "cg_sense.xml").write_text(pipeline(), encoding="utf-8")
    with pytest.raises(SettingsError, match="bare name"):
        find_pipeline(name, [tmp_path / "folder"])


UNKNOWN = ("unknown", "unknown.xml", "cg_sense.xml.xml", "cg_sense.txt", "xml", "__init__", "unknown-connect")


@pytest.mark.parametrize("name", [*UNKNOWN, "cg_sense-stock-front-connect"])
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(SettingsError, match=r"cinestream pipelines lists all"):
        find_pipeline(name)


def test_the_operators_folders_come_first(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, iterations in ((first, 3), (second, 4)):
        folder.mkdir()
        settings_text = f'<configuration iterations="{iterations}"/>'
        (folder / "cg_sense.xml").write_text(pipeline(configuration=settings_text), encoding="utf-8")
    (second / "own.xml").write_text(pipeline(), encoding="utf-8")
    (second / "readme.txt").write_text("no pipeline", encoding="utf-8")
    folders = [first, second, tmp_path / "missing"]
    assert find_pipeline("cg_sense", folders).settings.cg_sense.iterations == 3
    assert find_pipeline("own", folders).settings.method == "zero_filled"
    (second / "cinestream_own.xml").write_text(
        pipeline(configuration='<configuration method="grappa"/>'), encoding="utf-8"
    )
    assert find_pipeline("cinestream_own", folders).settings.method == "grappa"
    assert set(list_pipelines(folders)) == {*PACKAGED, "own", "cinestream_own"}
    assert list(list_pipelines(folders)) == sorted(list_pipelines(folders))


# --- FIRE's JSON ------------------------------------------------------------------------------------------------------


def test_json_parameters():
    found = parse_json_parameters(
        json.dumps(
            {
                "version": "1.0",
                "parameters": {
                    "config": "cg_sense",
                    "Iterations": "12",
                    "mapneighbourhood": 5,
                    "time_axis": "phase",
                    "whiten": False,
                    "sendOriginal": "1",
                    "7": 8,
                },
            }
        )
    )
    assert found.pipeline == "cg_sense"
    assert found.unknown == ("sendOriginal", "7")
    chosen = apply(Settings(), found.settings)
    assert chosen == Settings.of(iterations=12, map_neighbourhood=5, time_axis="phase", whiten=False)


def test_every_setting_is_reachable_by_its_plain_name():
    names = {name.replace("_", ""): field.default for name, field in FIELDS.items()}
    assert all(name.isalnum() for name in names)
    found = parse_json_parameters(json.dumps({"parameters": names}))
    assert apply(Settings(), found.settings) == Settings()
    assert not found.unknown


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, ""),
        ({"config": "a"}, "a"),
        ({"customconfig": "b"}, "b"),
        ({"config": "a", "customconfig": "b"}, "b"),
        ({"customconfig": "b", "config": "a"}, "b"),
        ({"config": "a", "customconfig": " "}, "a"),
        ({"customconfig": "", "config": " a "}, "a"),
        ({"customconfig": None, "config": None}, ""),
    ],
)
def test_choice_of_the_pipeline(parameters, expected):
    assert parse_json_parameters(json.dumps({"parameters": parameters})).pipeline == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "[1, 2]",
        "3",
        "null",
        "{}",
        '{"other": {}}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:20],
)
def test_other_texts_are_left_alone(text):
    assert parse_json_parameters(text) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"parameters": 3}', 'got {"parameters": 3}'),
        ('{"parameters": [1]}', 'got {"parameters": [1]}'),
        (' {"parameters": {', "got broken JSON: Expecting property name enclosed in double quotes at character 18"),
        ("{" * 5000, "got broken JSON"),
        ('{"parameters": {"series": 3,}}', "got broken JSON"),
        ('{"parameters": {"\\ud800": "\\udfff"}}', "got JSON that cannot be read"),
    ],
    ids=lambda text: text[:20],
)
def test_parameters_that_cannot_be_read_are_told(text, fault):
    found = parse_json_parameters(text)
    assert found is not None
    assert f'expected {{"parameters": {{"name": value}}}}, {fault}' in found.fault
    assert found.settings == {}
    assert found.pipeline == ""


@pytest.mark.parametrize("value", ["null", "[1]", "{}", "NaN", "Infinity", "1e999", '"many"'])
def test_json_values_that_are_no_setting(value):
    found = parse_json_parameters(f'{{"parameters": {{"iterations": {value}}}}}')
    with pytest.raises(SettingsError, match="'iterations' must be a whole number"):
        apply(Settings(), found.settings)
