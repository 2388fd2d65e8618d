import ismrmrd
import numpy as np
import pytest

from gadgets.simulation import ScanPlan, simulate, write_simulation
from gadgets.wire.messages import AcquisitionFlag, Readouts, Waveform
from recon_core.errors import SettingsError
from recon_core.options import options_of

SMALL = {"matrix_x": 48, "matrix_y": 36, "frames": 4, "coils": 3, "acs_lines": 8}


def plan(**changes):
    return ScanPlan(**{**SMALL, **changes})


def collect(scan):
    """All image readouts of a scan as one block, the noise scan, the waveforms."""
    blocks, noise, waves = [], None, []
    for item in scan.items():
        if isinstance(item, Waveform):
            waves.append(item)
        elif item.headers["flags"][0] & AcquisitionFlag.NOISE.bit:
            noise = item
        else:
            blocks.append(item)
    return (
        Readouts(np.concatenate([block.headers for block in blocks]), np.concatenate([block.data for block in blocks])),
        noise,
        waves,
    )


def has(headers, flag):
    return (headers["flags"] & flag.bit) != 0


def centred_ifft2(kspace):
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=axes), norm="ortho"), axes=axes)


def reconstruct(scan, readouts):
    """Place every readout by what the ISMRMRD header says and combine the coils with the true maps."""
    header = ismrmrd.xsd.CreateFromDocument(scan.header)
    encoding = header.encoding[0]
    nx, ny = encoding.encodedSpace.matrixSize.x, encoding.encodedSpace.matrixSize.y
    recon_x, recon_y = encoding.reconSpace.matrixSize.x, encoding.reconSpace.matrixSize.y
    centre = encoding.encodingLimits.kspace_encoding_step_1.center
    p = scan.plan
    kspace = np.zeros((p.slices, p.frames, p.coils, ny, nx), np.complex64)
    count = np.zeros((p.slices, p.frames, ny))
    for head, data in zip(readouts.headers, readouts.data, strict=True):
        row = ny // 2 - centre + head["idx"]["kspace_encode_step_1"]
        column = nx // 2 - head["center_sample"]
        where = (head["idx"]["slice"], head["idx"][p.time_axis])
        kspace[where][:, row, column : column + head["number_of_samples"]] += data
        count[where][row] += 1
    kspace /= np.maximum(count, 1)[:, :, None, :, None]
    images = centred_ifft2(kspace)
    y, x = ny // 2 - recon_y // 2, nx // 2 - recon_x // 2
    images = images[..., y : y + recon_y, x : x + recon_x]
    maps = scan.truth.coil_maps[:, None]
    return (maps.conj() * images).sum(2) / np.sqrt((np.abs(maps) ** 2).sum(2)), count


def error(image, reference):
    return np.linalg.norm(image - reference) / np.linalg.norm(reference)


def test_default_plan_is_a_usable_scan():
    default = ScanPlan()
    assert (default.frames, default.matrix_x, default.matrix_y, default.coils) == (24, 192, 156, 10)
    assert all(one.help for one in options_of(ScanPlan).values())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"matrix_x": 45, "matrix_y": 37, "oversampling": 1.4},
        {"oversampling": 1.0, "phase_oversampling": 0.31},
        {"slices": 3, "slice_order": "interleaved", "rotation_x": 30.0, "rotation_y": -20.0, "offset_back": 40.0},
        {"segments": 5, "averages": 2},
        {"segments": 7, "slices": 2, "slice_order": "interleaved", "frames": 2},
        {"time_axis": "repetition", "respiration": 12.0, "slices": 2},
    ],
)
def test_noise_free_full_scan_reconstructs_to_the_truth(changes):
    scan = simulate(plan(sampling="full", snr=0.0, **changes))
    readouts, noise, _ = collect(scan)
    assert noise is None
    image, count = reconstruct(scan, readouts)
    assert (count == scan.plan.averages).all()
    assert error(image, scan.truth.image) < 1e-4
    assert np.abs(scan.truth.image).max() > 0.5


def test_truth_does_not_need_the_readouts():
    scan, other = simulate(plan()), simulate(plan())
    list(other.items())
    np.testing.assert_array_equal(scan.truth.image, other.truth.image)


@pytest.mark.parametrize("sampling", ["uniform", "interleaved", "variable_density"])
def test_mask_of_the_truth_is_what_was_measured(sampling):
    scan = simulate(plan(sampling=sampling, partial_fourier=0.8, slices=2, snr=0.0))
    readouts, _, _ = collect(scan)
    _, count = reconstruct(scan, readouts)
    np.testing.assert_array_equal(count == 1, scan.truth.mask)
    assert not scan.truth.mask.all()


def test_partial_fourier_and_asymmetric_echo_keep_the_centre():
    options = {"sampling": "full", "snr": 0.0, "partial_fourier": 0.75, "asymmetric_echo": 0.25}
    scan = simulate(plan(**options, vendor="SIEMENS"))
    readouts, _, _ = collect(scan)
    limit = ismrmrd.xsd.CreateFromDocument(scan.header).encoding[0].encodingLimits.kspace_encoding_step_1
    assert (limit.minimum, limit.maximum, limit.center) == (0, 26, 9)
    assert set(readouts.headers["idx"]["kspace_encode_step_1"]) == set(range(27))
    assert set(readouts.headers["idx"]["user"][:, 5]) == {9}
    assert set(readouts.headers["center_sample"]) == {24}
    assert readouts.data.shape[2] == 72
    energy = np.abs(readouts.data).sum(1)
    peak = np.unravel_index(energy.argmax(), energy.shape)
    assert abs(int(readouts.headers["idx"]["kspace_encode_step_1"][peak[0]]) - 9) <= 3
    assert abs(int(peak[1]) - 24) <= 3
    # what was measured equals the whole scan there
    whole, _, _ = collect(simulate(plan(sampling="full", snr=0.0)))
    of_whole = whole.headers["idx"]["kspace_encode_step_1"] >= 9
    np.testing.assert_array_equal(readouts.data, whole.data[of_whole][:, :, 24:])


@pytest.mark.parametrize("echo", [0.0, 0.25])
def test_reversed_readouts_are_the_same_samples_backwards(echo):
    changes = {"sampling": "full", "snr": 0.0, "asymmetric_echo": echo}
    forward, _, _ = collect(simulate(plan(**changes)))
    readouts, _, _ = collect(simulate(plan(**changes, reversed_readouts=True)))
    reverse = has(readouts.headers, AcquisitionFlag.REVERSE)
    np.testing.assert_array_equal(reverse, readouts.headers["idx"]["kspace_encode_step_1"] % 2 == 1)
    np.testing.assert_array_equal(readouts.data[~reverse], forward.data[~reverse])
    np.testing.assert_array_equal(readouts.data[reverse], forward.data[reverse][:, :, ::-1])
    samples = forward.data.shape[2]
    center = forward.headers["center_sample"][0]
    assert set(readouts.headers["center_sample"][~reverse]) == {center}
    assert set(readouts.headers["center_sample"][reverse]) == {samples - 1 - center}


@pytest.mark.parametrize("size", [(48, 36), (45, 37)])
def test_interpolation_is_asked_for_by_the_header_and_in_the_truth(size):
    sizes = dict(zip(("matrix_x", "matrix_y"), size, strict=True))
    plain, fine = (simulate(plan(**sizes, interpolation=factor)) for factor in (1.0, 3.0))
    before, after = (ismrmrd.xsd.CreateFromDocument(scan.header).encoding[0] for scan in (plain, fine))
    assert after.encodedSpace.matrixSize.x == before.encodedSpace.matrixSize.x
    assert (after.reconSpace.matrixSize.x, after.reconSpace.matrixSize.y) == (3 * size[0], 3 * size[1])
    assert after.reconSpace.fieldOfView_mm.x == before.reconSpace.fieldOfView_mm.x
    assert fine.truth.image.shape[-2:] == (3 * size[1], 3 * size[0])
    # pixel n // 2 lies at the same place
    rows, columns = (3 * n // 2 + 3 * (np.arange(n) - n // 2) for n in size[::-1])
    np.testing.assert_allclose(fine.truth.image[..., rows, :][..., columns], plain.truth.image, atol=1e-5)


def test_same_seed_same_scan():
    first, second, other = (collect(simulate(plan(seed=seed)))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.headers, second.headers)
    np.testing.assert_array_equal(first.data, second.data)
    assert np.abs(first.data - other.data).max() > 0.01


def test_items_can_be_made_again():
    scan = simulate(plan())
    np.testing.assert_array_equal(collect(scan)[0].data, collect(scan)[0].data)


def test_flags_of_an_accelerated_scan():
    scan = simulate(plan(sampling="interleaved", acceleration=3, slices=2))
    readouts, noise, _ = collect(scan)
    headers = readouts.headers
    assert has(noise.headers, AcquisitionFlag.NOISE).all()
    for flag, last in ((AcquisitionFlag.FIRST_IN_SLICE, False), (AcquisitionFlag.LAST_IN_SLICE, True)):
        marked = np.flatnonzero(has(headers, flag))
        assert len(marked) == 2 * 4
        for index in marked:
            same = (headers["idx"]["slice"] == headers["idx"]["slice"][index]) & (
                headers["idx"]["phase"] == headers["idx"]["phase"][index]
            )
            assert index == np.flatnonzero(same)[-1 if last else 0]
    assert np.flatnonzero(has(headers, AcquisitionFlag.LAST_IN_MEASUREMENT)).tolist() == [len(headers) - 1]
    line, frame = (headers["idx"][name].astype(int) for name in ("kspace_encode_step_1", "phase"))
    acs = np.abs(line - 18 + 0.5) < 4
    grid = (line - 18 - frame) % 3 == 0
    np.testing.assert_array_equal(has(headers, AcquisitionFlag.CALIBRATION_AND_IMAGING), acs & grid)
    np.testing.assert_array_equal(has(headers, AcquisitionFlag.PARALLEL_CALIBRATION), acs & ~grid)
    assert (acs | grid).all()


def test_order_of_interleaved_slices_and_of_segments():
    headers = collect(simulate(plan(slices=3, slice_order="interleaved", snr=0.0)))[0].headers
    assert headers["idx"]["slice"][:7].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert (np.diff(headers["idx"]["phase"].astype(int)) >= 0).all()

    headers = collect(simulate(plan(sampling="full", segments=6, snr=0.0)))[0].headers
    assert headers["idx"]["phase"][:13].tolist() == [0] * 6 + [1] * 6 + [2]
    np.testing.assert_array_equal(headers["idx"]["segment"], headers["idx"]["kspace_encode_step_1"] // 6)
    assert (np.diff(headers["idx"]["segment"].astype(int)) >= 0).all()
    # one beat per segment: the time since the R wave falls five times
    assert (np.diff(headers["physiology_time_stamp"][:, 0].astype(int)) < 0).sum() == 5


@pytest.mark.parametrize(
    "changes",
    [{"frames": 40}, {"segments": 3}, {"time_axis": "repetition", "frames": 60}, {"segments": 4, "frames": 1}],
)
def test_time_stamps_rise_and_the_beat_restarts_them(changes):
    scan = simulate(plan(**changes, rr_variability=0.08, ectopic_beat=True, waveforms=False))
    readouts, noise, _ = collect(scan)
    counters = np.concatenate([noise.headers["scan_counter"], readouts.headers["scan_counter"]])
    np.testing.assert_array_equal(counters, np.arange(1, len(counters) + 1))
    ticks = readouts.headers["acquisition_time_stamp"].astype(np.int64)
    since = readouts.headers["physiology_time_stamp"][:, 0].astype(np.int64)
    assert noise.headers["acquisition_time_stamp"][-1] < ticks[0]
    assert (np.diff(ticks) >= 0).all()
    assert since.max() < 1.5 * 60 / 66 / 0.0025
    r_wave = ticks - since
    steps = np.diff(r_wave)
    assert (steps > 100).sum() >= 2
    assert np.abs(steps[steps <= 100]).max() <= 1  # within a beat the R wave stays where it is
    falls = np.diff(since) < 0
    assert falls.sum() >= 2
    assert (steps[falls] > 100).all()


def test_time_stamps_wrap_at_midnight():
    ticks = (
        collect(simulate(plan(start_time=86399.0, sampling="full", frames=20)))[0]
        .headers["acquisition_time_stamp"]
        .astype(int)
    )
    assert (np.diff(ticks) < 0).sum() == 1
    assert ticks.max() < 34_560_000


def test_frames_of_a_real_time_scan_follow_the_ecg():
    scan = simulate(plan(time_axis="repetition", frames=40, acceleration=4, acs_lines=0, snr=0.0))
    headers = collect(scan)[0].headers
    assert set(headers["idx"]["phase"]) == {0}
    middle = [
        np.median(headers["physiology_time_stamp"][headers["idx"]["repetition"] == frame, 0]) for frame in range(40)
    ]
    phase = scan.truth.cardiac_phase[0]
    assert np.corrcoef(middle, phase)[0, 1] > 0.98
    assert (np.diff(phase) < 0).any()


def test_continuous_lines_have_no_frame_counter():
    """The same lines as with a counter, and nothing but their order tells the frames."""
    choices = {"time_axis": "repetition", "sampling": "interleaved", "acceleration": 4, "acs_lines": 0, "slices": 2}
    counted, continuous = (simulate(plan(continuous=value, **choices)) for value in (False, True))
    (with_counter, _, _), (without, _, _) = collect(counted), collect(continuous)
    np.testing.assert_array_equal(without.data, with_counter.data)
    assert set(without.headers["idx"]["repetition"]) == set(without.headers["idx"]["phase"]) == {0}
    for name in ("slice", "kspace_encode_step_1"):
        np.testing.assert_array_equal(without.headers["idx"][name], with_counter.headers["idx"][name])
    assert np.count_nonzero(has(without.headers, AcquisitionFlag.LAST_IN_SLICE)) == 2
    assert ismrmrd.xsd.CreateFromDocument(continuous.header).encoding[0].encodingLimits.repetition.maximum == 0


RETROSPECTIVE = {"gating": "retrospective", "segments": 6, "sampling": "full", "snr": 0.0}


def test_retrospective_scan_repeats_a_segment_until_the_next_trigger():
    scan = simulate(plan(**RETROSPECTIVE, rr_variability=0.1, ectopic_beat=True, vendor="SIEMENS"))
    headers = collect(scan)[0].headers
    counters, since = headers["idx"], headers["physiology_time_stamp"][:, 0].astype(int)
    np.testing.assert_array_equal(counters["segment"], counters["kspace_encode_step_1"] // 6)
    assert counters["kspace_encode_step_1"][:13].tolist() == [0, 1, 2, 3, 4, 5] * 2 + [0]
    assert counters["phase"][:13].tolist() == [0] * 6 + [1] * 6 + [2]
    phases = [int(counters["phase"][counters["segment"] == number].max()) + 1 for number in range(6)]
    assert len(set(phases)) > 2
    rr = np.diff((headers["acquisition_time_stamp"] - since)[np.flatnonzero(np.diff(since, prepend=1) < 0)]) * 2.5
    assert rr[2] == pytest.approx(0.6 * 60e3 / 66, abs=5)  # the third beat is early
    np.testing.assert_allclose(np.array(phases[:-1]) * 6 * 2.8, rr[:5], atol=6 * 2.8)
    steps = np.diff(headers["acquisition_time_stamp"].astype(int))
    assert set(steps) == {1, 2}  # 2.8 ms in ticks of 2.5 ms, without a break
    header = ismrmrd.xsd.CreateFromDocument(scan.header)
    assert {(p.name, p.value) for p in header.userParameters.userParameterLong} == {
        ("RetroGatedImages", 4),
        ("RetroGatedSegmentSize", 6),
    }
    assert header.encoding[0].encodingLimits.phase.maximum == 3
    assert scan.truth.cardiac_phase.tolist() == [[0.0, 0.25, 0.5, 0.75]]


@pytest.mark.parametrize("how", [pytest.param("missed", marks=pytest.mark.slow), "false"])
def test_retrospective_triggers_may_be_wrong(how):
    right, wrong = (
        collect(simulate(plan(**RETROSPECTIVE, waveforms=True, **changes))) for changes in ({}, {f"{how}_trigger": 2})
    )
    since = [readouts.headers["physiology_time_stamp"][:, 0].astype(int) for readouts, _, _ in (right, wrong)]
    triggers = [sum(np.count_nonzero(wave.data[-1]) for wave in waves) for _, _, waves in (right, wrong)]
    if how == "missed":
        assert since[1].max() > 1.8 * since[0].max()
    else:
        falls = since[1][:-1][np.diff(since[1]) < 0]
        assert falls.min() == pytest.approx(0.3 / 0.0025, abs=8)
    assert len(right[0].headers) != len(wrong[0].headers) or triggers[0] != triggers[1]


def test_retrospective_scan_measures_arrhythmic_beats_again():
    once, again = (
        collect(simulate(plan(**RETROSPECTIVE, rr_variability=0.0, ectopic_beat=True, remeasure=remeasure)))[0]
        for remeasure in (False, True)
    )
    beats = [np.count_nonzero(np.diff(r.headers["physiology_time_stamp"][:, 0].astype(int)) < 0) for r in (once, again)]
    assert beats[1] == beats[0] + 2  # the early beat and its pause


def test_freely_running_scan_goes_through_all_lines():
    headers = collect(simulate(plan(**{**RETROSPECTIVE, "segments": 0}, averages=3)))[0].headers
    lines = headers["idx"]["kspace_encode_step_1"].astype(int)
    assert (np.diff(lines) % 36 == 1).all()
    assert set(headers["idx"]["average"]) == {0, 1, 2}


def test_noise_has_the_covariance_of_the_truth():
    options = {"coils": 4, "snr": 5.0, "noise_readouts": 256, "waveforms": False}
    scan, clean = simulate(plan(**options)), simulate(plan(**{**options, "snr": 0.0}))
    readouts, noise, _ = collect(scan)
    expected = scan.truth.noise_covariance
    rest = (readouts.data - collect(clean)[0].data).swapaxes(0, 1).reshape(4, -1)
    assert error(rest @ rest.conj().T / rest.shape[1], expected) < 0.05
    assert np.mean(rest.real**2) == pytest.approx(np.mean(rest.imag**2), rel=0.05)
    measured = noise.data.swapaxes(0, 1).reshape(4, -1)
    power = scan.plan.sample_time / float(noise.headers["sample_time_us"][0]) * 0.793
    assert error(measured @ measured.conj().T / measured.shape[1], power * expected) < 0.05
    # the signal-to-noise ratio is what the plan says
    assert np.sqrt(np.trace(expected).real / 4 / 2) == pytest.approx(0.86 / 5.0, rel=1e-3)


def test_geometry_of_an_oblique_stack():
    scan = simulate(plan(slices=3, rotation_x=25.0, rotation_y=40.0, offset_left=10.0, offset_head=-30.0, snr=0.0))
    headers = collect(scan)[0].headers
    read, phase, normal = (headers[name][0] for name in ("read_dir", "phase_dir", "slice_dir"))
    np.testing.assert_allclose(np.cross(read, phase), normal, atol=1e-6)
    assert abs(np.dot(read, phase)) < 1e-6
    assert np.linalg.norm(read) == pytest.approx(1.0)
    positions = np.array([headers["position"][headers["idx"]["slice"] == number][0] for number in range(3)])
    np.testing.assert_allclose(positions, scan.truth.position, atol=1e-4)
    np.testing.assert_allclose(positions[1], [10.0, 0.0, -30.0], atol=1e-4)
    np.testing.assert_allclose(positions[2] - positions[1], 10.0 * normal, atol=1e-4)
    np.testing.assert_allclose(scan.truth.slice_dir[0], normal, atol=1e-6)


def test_ecg_triggers_lie_on_the_r_waves():
    scan = simulate(plan(segments=3))
    readouts, _, waves = collect(scan)
    assert waves
    triggers = np.concatenate([int(w.header["time_stamp"]) + np.flatnonzero(w.data[-1]) for w in waves])
    r_waves = readouts.headers["acquisition_time_stamp"].astype(int) - readouts.headers["physiology_time_stamp"][:, 0]
    for r_wave in np.unique(r_waves[r_waves <= triggers.max()]):
        assert np.abs(triggers - r_wave).min() <= 1
    assert {int(w.header["waveform_id"]) for w in waves} == {0}
    assert max(int(w.data.max()) for w in waves) == 4095
    last = list(scan.items())[-1]
    assert isinstance(last, Readouts)


@pytest.mark.parametrize(
    ("changes", "mode", "factor"),
    [
        ({"sampling": "full"}, "other", 1),
        ({"acceleration": 2}, "embedded", 2),
        ({"acceleration": 2, "acs_lines": 0}, "other", 2),
        ({"sampling": "interleaved", "acceleration": 4, "time_axis": "repetition"}, "interleaved", 4),
    ],
)
def test_header_is_valid_ismrmrd(changes, mode, factor):
    scan = simulate(plan(slices=2, vendor="A & B <x>", phase_oversampling=0.25, **changes))
    header = ismrmrd.xsd.CreateFromDocument(scan.header)
    assert header.acquisitionSystemInformation.receiverChannels == 3
    assert header.acquisitionSystemInformation.systemVendor == "A & B <x>"
    assert header.acquisitionSystemInformation.relativeReceiverNoiseBandwidth == pytest.approx(0.793)
    assert header.version is None
    assert header.measurementInformation.patientPosition.value == "HFS"
    assert len(header.measurementInformation.measurementID.split("_")) == 4
    encoding = header.encoding[0]
    assert (encoding.encodedSpace.matrixSize.x, encoding.encodedSpace.matrixSize.y) == (96, 45)
    assert encoding.encodedSpace.fieldOfView_mm.x == pytest.approx(720.0)
    assert encoding.encodedSpace.fieldOfView_mm.y == pytest.approx(292.5 * 1.25)
    assert encoding.reconSpace.fieldOfView_mm.y == pytest.approx(292.5)
    assert encoding.encodingLimits.slice.maximum == 1
    assert getattr(encoding.encodingLimits, scan.plan.time_axis).maximum == 3
    assert encoding.parallelImaging.calibrationMode.value == mode
    assert encoding.parallelImaging.accelerationFactor.kspace_encoding_step_1 == factor
    assert header.sequenceParameters.echo_spacing == [2.8]


def test_file_reads_back_with_the_stock_library(tmp_path):
    path = tmp_path / "scan.h5"
    truth_path = write_simulation(plan(), path)
    scan = simulate(plan())
    items = [item for item in scan.items() if isinstance(item, Readouts)]
    dataset = ismrmrd.Dataset(str(path), "dataset", False)
    try:
        ismrmrd.xsd.CreateFromDocument(dataset.read_xml_header())
        assert dataset.read_xml_header().decode() == scan.header
        assert dataset.number_of_acquisitions() == sum(map(len, items))
        assert dataset.number_of_waveforms() > 0
        number = 0
        for block in items:
            for head, data in zip(block.headers, block.data, strict=True):
                stored = dataset.read_acquisition(number)
                np.testing.assert_array_equal(stored.data, data)
                assert stored.scan_counter == head["scan_counter"] == number + 1
                assert stored.flags == head["flags"]
                assert stored.idx.phase == head["idx"]["phase"]
                assert stored.center_sample == head["center_sample"]
                number += 1
        assert dataset.read_waveform(0).data.shape == (5, 320)
    finally:
        dataset.close()
    assert truth_path == tmp_path / "scan_truth.npz"
    with np.load(truth_path) as truth:
        np.testing.assert_array_equal(truth["image"], scan.truth.image)
        assert truth["image"].shape == (1, 4, 36, 48)
        assert truth["coil_maps"].shape == (1, 3, 36, 48)
        assert truth["mask"].shape == (1, 4, 36)
        assert truth["noise_covariance"].shape == (3, 3)
        assert truth["position"].shape == truth["read_dir"].shape == (1, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 0}, "frames"),
        ({"sampling": "spiral"}, "sampling"),
        ({"asymmetric_echo": 0.5}, "asymmetric_echo"),
        ({"segments": 100}, "per beat"),
        ({"time_axis": "repetition", "segments": 2}, "real-time"),
        ({"time_axis": "repetition", "averages": 2}, "real-time"),
        ({"respiration": 5.0}, "respiration"),
        ({"continuous": True}, "continuous"),
        ({"missed_trigger": 1}, "gating retrospective"),
        ({"gating": "retrospective", "sampling": "interleaved"}, "same lines"),
        ({"gating": "retrospective", "slices": 2, "slice_order": "interleaved"}, "sequential"),
        ({"acs_lines": 34, "partial_fourier": 0.75}, "ACS"),
        ({"matrix_y": 12, "acs_lines": 0, "acceleration": 20}, "acceleration"),
        ({"snr": float("nan")}, "snr"),
    ],
)
def test_contradictory_plans_are_refused(changes, words):
    with pytest.raises(SettingsError, match=words):
        plan(**changes)


# --- senders ----------------------------------------------------------------------------------------------------------


def test_noise_of_its_own_is_what_would_be_in_front():
    together, apart = simulate(plan()), simulate(plan(noise_scan="dependent"))
    assert together.noise is None
    readouts, noise, _ = collect(together)
    alone, nothing, _ = collect(apart)
    assert nothing is None
    np.testing.assert_array_equal(alone.data, readouts.data)
    assert alone.headers["scan_counter"][0] == 1
    xml, own = apart.noise
    np.testing.assert_array_equal(own.data, noise.data)
    (dependency,) = ismrmrd.xsd.CreateFromDocument(apart.header).measurementInformation.measurementDependency
    measurement = ismrmrd.xsd.CreateFromDocument(xml).measurementInformation
    assert (dependency.dependencyType, dependency.measurementID) == ("Noise", measurement.measurementID)
    for text in (apart.header, xml):  # NoiseAdjust refuses the noise of a measurement without
        labels = ismrmrd.xsd.CreateFromDocument(text).acquisitionSystemInformation.coilLabel
        assert [label.coilNumber for label in labels] == list(range(apart.plan.coils))
        assert len({label.coilName for label in labels}) == apart.plan.coils
    assert measurement.measurementDependency == []
    assert ismrmrd.xsd.CreateFromDocument(together.header).measurementInformation.measurementDependency == []


@pytest.mark.parametrize("changes", [{"snr": 0.0}, {"noise_readouts": 0}])
def test_without_noise_there_is_no_noise_measurement(changes, tmp_path):
    scan = plan(noise_scan="dependent", **changes)
    assert simulate(scan).noise is None
    assert "Dependency" not in simulate(scan).header
    write_simulation(scan, tmp_path / "scan.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.h5", "scan_truth.npz"]


def test_a_sender_that_removes_oversampling_keeps_the_image_and_its_noise():
    whole, _, _ = collect(simulate(plan(sampling="full", snr=0.0)))
    readouts, _, _ = collect(simulate(plan(sampling="full", snr=0.0, removes_oversampling=True)))
    assert readouts.data.shape[2] == 48
    assert set(readouts.headers["center_sample"]) == {24}
    wide = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(whole.data, axes=2), norm="ortho"), axes=2)[:, :, 24:72]
    narrow = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(readouts.data, axes=2), norm="ortho"), axes=2)
    np.testing.assert_allclose(narrow, wide, atol=1e-5 * np.abs(wide).max())


def test_the_centre_of_the_header_may_be_that_of_the_siemens_converter():
    scan = simulate(plan(partial_fourier=0.75, header_center="middle", vendor="SIEMENS"))
    limit = ismrmrd.xsd.CreateFromDocument(scan.header).encoding[0].encodingLimits.kspace_encoding_step_1
    assert (limit.maximum, limit.center) == (26, 18)
    assert set(collect(scan)[0].headers["idx"]["user"][:, 5]) == {9}


@pytest.mark.parametrize(("vendor", "per_second"), [("SIEMENS", 400), ("Philips", 1000), ("", 1000)])
def test_ticks_are_those_of_the_vendor(vendor, per_second):
    readouts, _, _ = collect(simulate(plan(vendor=vendor, start_time=86399.0, repetition_time=30.0)))
    stamps = readouts.headers["acquisition_time_stamp"].astype(np.int64)
    assert stamps[0] == 86399 * per_second
    assert stamps.max() < 86400 * per_second
    assert stamps[-1] < 100 * per_second  # the next day


@pytest.mark.parametrize(
    ("stamps", "zero"), [("all", (False, False)), ("acquisition", (False, True)), ("none", (True, True))]
)
def test_time_stamps_may_be_left_out(stamps, zero):
    plan = ScanPlan(matrix_x=24, matrix_y=16, frames=4, coils=2, sampling="full", stamps=stamps)
    for item in simulate(plan).items():
        if isinstance(item, Readouts):
            found = [item.headers[name].any() for name in ("acquisition_time_stamp", "physiology_time_stamp")]
            assert tuple(not one for one in found) == zero


def test_off_resonance_turns_what_is_far_from_the_echo():
    pytest.importorskip("finufft", reason="no wheel of finufft for this platform")
    square = {"matrix_y": 48, "field_of_view_y": 360.0, "frames": 2, "trajectory": "golden", "spokes": 5, "snr": 0}
    on, off = (simulate(plan(off_resonance=hertz, **square)) for hertz in (0.0, 500.0))
    one, other = (collect(scan)[0].data for scan in (on, off))
    changes = np.abs(other - one).max(axis=(0, 1)) / np.abs(one).max()
    centre = on.plan.center_sample
    assert changes[centre] < 1e-5 < 1e-3 < changes[centre + 2] < 0.1
    np.testing.assert_array_equal(off.truth.image, on.truth.image)
