"""The report on a raw file: the facts that the scan was made with, and a remedy for what is wrong with it."""

import dataclasses
import json

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gadgets.commands.main import main
from gadgets.files.raw import _readout_blocks, open_scan, write_scan
from gadgets.inspection.raw_file import inspect
from gadgets.settings.settings import Settings, apply
from gadgets.simulation import ScanPlan, simulate, write_simulation
from gadgets.wire.messages import AcquisitionFlag, Close, Header, Readouts, Waveform
from gadgets.wire.writer import Writer
from recon_core.errors import DataError
from recon_core.trust.ranges import TrainingRange
from tests.helpers.builders import header_xml, readouts
from tests.helpers.networks import write_tiny_weights

PLAN = ScanPlan(matrix_x=48, matrix_y=40, frames=4, coils=3, acceleration=2, acs_lines=10, seed=3)
SETTINGS = Settings()


def report_on(tmp_path, plan=PLAN, settings=SETTINGS, change=lambda items: items, header=lambda text: text):
    """Inspect a simulated scan whose messages or header were changed."""
    scan, path = simulate(plan), tmp_path / "scan.h5"
    write_scan(path, header(scan.header), change(list(scan.items())))
    report = inspect(path, settings)
    return json.loads(report.json()), report


def all_navigation(items):
    readouts = [item for item in items if isinstance(item, Readouts)]
    for item in readouts:
        item.headers["flags"] = AcquisitionFlag.NAVIGATION.bit
    return readouts


def only_noise(items):
    return [item for item in items if isinstance(item, Waveform) or item.headers["flags"][0] & NOISE]


def image_blocks(items):
    return [item for item in items if isinstance(item, Readouts) and not item.headers["flags"][0] & NOISE]


NOISE = AcquisitionFlag.NOISE.bit


def section(document, start):
    return next(value for name, value in document.items() if name.startswith(start))


def test_facts_of_a_good_scan(tmp_path):
    document, report = report_on(tmp_path, dataclasses.replace(PLAN, slices=2, phase_oversampling=0.2))
    assert report.good
    assert document["findings"] == []
    found = section(document, "Readouts")
    lines = 2 * 4 * (24 + 5)  # every second of 48 lines, and half of the 10 in the middle
    assert found["count"] == {"noise": 32, "image": lines - 40, "reference": 40}
    assert found["flags"]["LAST_IN_SLICE"] == 8
    assert found["counters"]["phase"] == {"least": 0, "most": 3, "values": 4}
    assert found["counters"]["slice"] == {"least": 0, "most": 1, "values": 2}
    assert found["coils"] == {"readouts": [3], "header": 3}
    assert found["centre line"] == {"header": 24, "readouts": []}
    assert found["waveform 0"]["triggers"] > 1
    complete = section(document, "Slices")["complete"]
    assert [one["lines_of_frames"] for one in complete] == [[29, 29]] * 2
    assert [(one["pattern"], one["centre_lines"], one["partial_fourier"]) for one in complete] == [
        ("constant", 11, 1.0)
    ] * 2
    assert section(document, "Reconstruction")["images"] == {"images": 8, "slices": 2}
    assert section(document, "Reconstruction")["whitening"] is True


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"gating": "retrospective", "segments": 5}, "retrospective"),
        ({"segments": 5}, "prospective, segmented"),
        ({"time_axis": "repetition", "frames": 40, "repetition_time": 4.0}, "real time"),
    ],
)
def test_kinds_of_gating(tmp_path, changes, kind):
    document, _ = report_on(tmp_path, dataclasses.replace(PLAN, heart_rate=60.0, rr_variability=0.0, **changes))
    (gating,) = section(document, "Time")["gating"]
    assert gating["kind"] == kind
    assert np.allclose(gating["rr_ms"][1:-1], 1000.0, atol=5.0)


def test_asymmetric_echo_partial_fourier_and_both_centres(tmp_path):
    plan = dataclasses.replace(
        PLAN, vendor="SIEMENS", asymmetric_echo=0.25, partial_fourier=0.75, sampling="full", matrix_y=48
    )
    document, report = report_on(tmp_path, plan, header=lambda text: text.replace("<center>12<", "<center>24<"))
    assert "asymmetric echo: 24 of 96 missing at the front, oversampling 2 is removed" in report.text()
    assert section(document, "Readouts")["centre line"] == {"header": 24, "readouts": [12]}
    assert "the readouts are believed" in document["findings"][0]["text"]
    assert section(document, "Slices")["complete"][0]["partial_fourier"] == 0.75
    assert report.good


def test_what_is_damaged_makes_it_bad(tmp_path):
    def spoil(items):
        image_blocks(items)[1].data[2:4] = np.nan
        image_blocks(items)[2].data[1] = 0
        return items

    document, report = report_on(tmp_path, change=spoil)
    assert not report.good
    assert section(document, "Readouts")["values"]["not_finite"] == 2
    bad, *notes = document["findings"]
    assert bad["damage"]
    assert "not finite" in bad["text"]
    assert any("1 readouts hold zeros only" in note["text"] for note in notes)


def test_lost_readouts_are_counted(tmp_path):
    def lose(items):
        block = image_blocks(items)[1]
        items[next(i for i, item in enumerate(items) if item is block)] = block[3:]
        return items

    document, report = report_on(tmp_path, change=lose)
    assert any("3 scan counters" in finding["text"] for finding in document["findings"])
    assert section(document, "Slices")["complete"][0]["lines_of_frames"] == [22, 25]
    assert "frame 1 has 22" in report.text() or "22 to 25 lines" in report.text()


def test_notes_on_coils_noise_and_the_matrix(tmp_path):
    def header(text):
        text = text.replace("<receiverChannels>3<", "<receiverChannels>20<").replace("<y>292.5</y>", "<y>147</y>")
        need = "<measurementDependency><dependencyType>Noise</dependencyType><measurementID>m_7</measurementID>"
        return text.replace("</measurementInformation>", f"{need}</measurementDependency></measurementInformation>")

    document, report = report_on(tmp_path, dataclasses.replace(PLAN, noise_readouts=0), header=header)
    texts = "\n".join(finding["text"] for finding in document["findings"])
    assert "the header says 20 coils, the readouts have 3" in texts
    assert "no noise readouts" in texts
    assert "m_7" in texts
    assert "twice too large" in texts
    assert report.good


def test_an_acceleration_that_the_header_does_not_tell(tmp_path):
    plan = dataclasses.replace(PLAN, acceleration=4, acs_lines=0)
    _, report = report_on(tmp_path, plan)
    assert "announces an acceleration" not in report.text()
    named = "<kspace_encoding_step_1>{}</kspace_encoding_step_1>"
    _, report = report_on(tmp_path, plan, header=lambda text: text.replace(named.format(4), named.format(1)))
    assert "announces an acceleration of 1, frames of encoding 0 have 1 of 4 lines" in report.text()


def test_a_file_without_frames_and_stamps(tmp_path):
    path, vendor = tmp_path / "ge.h5", "<systemVendor>GE MEDICAL SYSTEMS</systemVendor>"
    vendor = f"<acquisitionSystemInformation>{vendor}</acquisitionSystemInformation>"
    write_scan(path, header_xml(before=vendor), [readouts(16, kspace_encode_step_1=np.arange(16), center_sample=16)])
    report = inspect(path, SETTINGS)
    assert "need idx.phase" in report.text()
    assert "no gating and one frame only" in report.text()


def test_a_measurement_of_noise(tmp_path):
    _, report = report_on(tmp_path, change=only_noise)
    assert report.good
    assert "a measurement of noise, without images" in report.text()


def test_a_scan_that_gives_no_image(tmp_path):
    document, report = report_on(tmp_path, change=all_navigation)
    assert not report.good
    assert "no image readouts in the scan" in document["findings"][0]["text"]


FIELDS = ("flags", "encoding_space_ref", "number_of_samples", "active_channels", "center_sample", "discard_pre")
STAMPS = ("scan_counter", "acquisition_time_stamp")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from((*FIELDS, *STAMPS, "slice", "phase", "kspace_encode_step_1", "physiology_time_stamp")),
    value=st.integers(0, 65535),
    some=st.sampled_from((slice(0, 1), slice(3, 9), slice(None))),
)
def test_whatever_is_wrong_there_is_a_report(tmp_path, name, value, some):
    def spoil(items):
        for block in image_blocks(items):
            headers = block.headers["idx"] if name in block.headers["idx"].dtype.names else block.headers
            headers[name][some] = value
        return items

    _, report = report_on(tmp_path, dataclasses.replace(PLAN, matrix_x=16, frames=2), change=spoil)
    assert "Readouts" in report.text()


def test_repetitions_and_contrasts_are_series_of_their_own(tmp_path):
    def repeat(items):
        blocks = image_blocks(items)
        again = [Readouts(block.headers.copy(), block.data) for block in blocks]
        for block in again:
            block.headers["idx"]["repetition"] = 1
            block.headers["acquisition_time_stamp"] += 2000
        return [*items, *again]

    document, _ = report_on(tmp_path, change=repeat)
    assert section(document, "Time")["gating"][0]["kind"] in ("real time", "prospective, one frame after the other")


def test_a_stream_that_was_saved_raw(tmp_path):
    scan, path = simulate(PLAN), tmp_path / "scan.mrd"
    with path.open("wb") as file:
        writer = Writer(lambda buffers: sum(map(file.write, buffers)))
        for message in (Header(scan.header), *scan.items(), Close()):
            writer.send(message)
    assert inspect(path, SETTINGS).good


def test_a_file_without_readouts(tmp_path):
    path = tmp_path / "empty.h5"
    write_scan(path, header_xml(), [])
    report = inspect(path, SETTINGS)
    assert not report.good
    assert "0 readouts came" in report.text()


def test_a_file_that_breaks_off_is_reported_as_far_as_it_goes(tmp_path, monkeypatch):
    def broken(dataset, header):
        yield from list(blocks(dataset, header))[:3]
        raise DataError("the file is damaged")

    blocks = _readout_blocks
    monkeypatch.setattr("gadgets.files.raw._readout_blocks", broken)
    document, report = report_on(tmp_path)
    assert not report.good
    assert "the file is damaged" in report.text()
    assert section(document, "Readouts")["count"]["noise"] == 32


@pytest.mark.parametrize("trained", [(4, 12), (40, 400)])
def test_the_range_of_weights_is_looked_at(tmp_path, monkeypatch, trained):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "weights"))
    write_tiny_weights(tmp_path / "weights", "crunet_mr", range=TrainingRange(frames=trained))
    document, report = report_on(tmp_path, settings=apply(SETTINGS, {"method": "crunet_mr"}))
    outside = section(document, "Reconstruction")["weights"]["outside"]
    assert outside == ([[]] if trained == (4, 12) else [["frames 4, trained for 40 to 400"]])
    assert ("within the range of the training" in report.text()) == (trained == (4, 12))


def test_network_without_weights(tmp_path):
    settings = apply(SETTINGS, {"method": "crunet_mr"})
    document, _ = report_on(tmp_path, settings=settings)
    assert section(document, "Reconstruction")["weights"] is None
    assert "kt_sense is used instead of crunet_mr" in document["findings"][0]["text"]


def test_the_file_is_read_once_and_waveforms_of_the_learning_phase_are_distinguished(tmp_path):
    def learning(items):
        for item in items:
            if isinstance(item, Waveform):
                item.header["waveform_id"] = 5
        return items

    document, report = report_on(tmp_path, change=learning)
    assert "ECG (learning phase)" in report.text()
    assert "waveform 0" not in section(document, "Readouts")


def test_spokes_with_their_angles_and_delays(tmp_path):
    pytest.importorskip("finufft", reason="no wheel of finufft for this platform")
    plan = {"trajectory": "golden", "spokes": 20, "frames": 10, "coils": 4, "snr": 200.0}
    size = {"matrix_x": 64, "matrix_y": 64, "field_of_view_x": 360.0, "field_of_view_y": 360.0}
    plan = ScanPlan(**plan, **size, delay_x=0.8, delay_y=-0.4)
    document, _ = report_on(tmp_path, plan)
    (found,) = section(document, "Slices")["complete"]
    assert (found["frames"], found["lines_of_frames"]) == (10, [20, 20])
    assert "golden angle" in found["angles"]
    assert (found["delays"]["x"], found["delays"]["y"]) == (pytest.approx(0.8, abs=0.05), pytest.approx(-0.4, abs=0.05))


def test_weights_for_lines_are_not_for_spokes(tmp_path, monkeypatch):
    pytest.importorskip("finufft", reason="no wheel of finufft for this platform")
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "weights"))
    trained = TrainingRange(patterns=("random",), acceleration=(3.0, 5.0))
    write_tiny_weights(tmp_path / "weights", "cinenet", range=trained)
    size = {"matrix_x": 64, "matrix_y": 64, "field_of_view_x": 360.0, "field_of_view_y": 360.0}
    plan = ScanPlan(trajectory="golden", spokes=16, frames=4, coils=4, **size)
    document, _ = report_on(tmp_path, plan, settings=apply(SETTINGS, {"method": "cinenet"}))
    assert section(document, "Reconstruction")["weights"]["outside"] == [["radial pattern, trained for random"]]
    assert "acceleration" not in " ".join(found["text"] for found in document["findings"])


def test_command(tmp_path, capsys):
    path, out = tmp_path / "scan.h5", tmp_path / "report.json"
    write_simulation(PLAN, path)
    assert main(["doctor", str(path), "--json", str(out), "--set", "coil_energy=0.9"]) == 0
    assert "Nothing looks wrong" in capsys.readouterr().out
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["good"]
    with open_scan(path) as scan:
        items = [item for item in scan.items if isinstance(item, Readouts)]
        write_scan(
            tmp_path / "short.h5",
            scan.header.replace("<slice><minimum>0</minimum><maximum>0", "<slice><minimum>0</minimum><maximum>2"),
            items,
        )
    assert main(["doctor", str(tmp_path / "short.h5")]) == 0
    assert "note  2 of the slices that the header promises never came" in capsys.readouterr().out


def test_command_with_bad_files(tmp_path, capsys):
    path = tmp_path / "scan.h5"
    write_simulation(PLAN, path)
    (tmp_path / "text.h5").write_text("no raw data", encoding="utf-8")
    (tmp_path / "short.h5").write_bytes(path.read_bytes()[:9000])
    (tmp_path / "matlab.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512))
    with h5py.File(tmp_path / "fastmri.h5", "w") as file:
        file["kspace"] = np.zeros((1, 2, 8, 8), np.complex64)
    for arguments, expected in (
        ([path, "--group", "other"], "groups with raw data: dataset"),
        ([tmp_path / "text.h5"], "neither an HDF5 file nor a stream"),
        ([tmp_path / "matlab.mat"], "is a MATLAB file, not ISMRMRD; cinestream convert"),
        ([tmp_path / "fastmri.h5"], "nor in another; cinestream convert"),
        ([tmp_path / "short.h5"], "truncated file"),
        ([tmp_path / "absent.h5"], "No such file"),
        ([tmp_path], "Is a directory"),
    ):
        assert main(["doctor", *map(str, arguments)]) == 1
        assert expected in capsys.readouterr().err
    assert main(["doctor", str(path), "--json", str(path)]) == 2


def test_beats_of_the_ecg(tmp_path):
    plan = dataclasses.replace(
        PLAN, sampling="full", gating="retrospective", segments=8, stamps="acquisition", waveforms=True
    )
    _, report = report_on(tmp_path, plan)
    assert "retrospective; gated retrospectively by the ECG" in report.text()


def test_a_pipeline_in_real_time_is_looked_at_too(tmp_path):
    _, report = report_on(
        tmp_path, dataclasses.replace(PLAN, time_axis="repetition"), apply(SETTINGS, {"realtime": "sliding"})
    )
    assert report.good
