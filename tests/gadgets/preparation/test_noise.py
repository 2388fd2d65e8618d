import re

import numpy as np
import pytest

from gadgets.chain import Chain
from gadgets.connection.server import SharedEngine
from gadgets.connection.session import SessionOptions
from gadgets.files.images import read_images
from gadgets.files.noise import read_noise
from gadgets.files.raw import write_scan
from gadgets.preparation.noise import NoiseSources, ScanNoise
from gadgets.preparation.noise_statistics import NoiseStatistics
from gadgets.preparation.noise_store import NoiseStore
from gadgets.problems import Problems
from gadgets.replay import replay
from gadgets.settings.settings import Settings
from gadgets.simulation import ScanPlan, noise_path, simulate, write_simulation
from gadgets.wire.header import parse_header
from gadgets.wire.messages import AcquisitionFlag, Close, ConfigFile, Header, Image, Readouts
from recon_core.engine import Engine
from recon_core.errors import DataError
from tests.helpers.builders import header_xml, readouts
from tests.helpers.peers import serving, talk

SMALL = {
    "matrix_x": 48,
    "matrix_y": 36,
    "frames": 3,
    "coils": 4,
    "acs_lines": 12,
    "acceleration": 2,
    "waveforms": False,
}
FAST = Settings.of(method="zero_filled", device="cpu")
NOISE = (AcquisitionFlag.NOISE,)


@pytest.fixture(scope="module")
def engine():
    return Engine("cpu")


@pytest.fixture(scope="module")
def together():
    """A scan with the noise inside."""
    scan = simulate(ScanPlan(**SMALL))
    return scan.header, list(scan.items())


@pytest.fixture(scope="module")
def apart():
    """The same scan, whose noise is a measurement of its own: header and messages of the noise, and of the scan."""
    scan = simulate(ScanPlan(**SMALL, noise_scan="dependent"))
    header, noise = scan.noise
    return (header, [noise]), (scan.header, list(scan.items()))


def reconstruct(engine, scan, settings=FAST, **sources):
    """Images and problems."""
    header, items = scan
    chain = Chain(parse_header(header), settings, lambda: engine, noise=NoiseSources(**sources))
    return [item for item in chain(iter(items)) if isinstance(item, Image)], chain.summary.problems


def pixels(images):
    return np.stack([image.data for image in images])


def said(image):
    """What an image says of the noise."""
    (found,) = re.findall("<meta><name>cinestream_noise</name>(.*?)</meta>", image.attributes)
    return re.findall("<value>(.*?)</value>", found)


def assert_alike(images, expected):
    expected = pixels(expected)
    assert np.abs(pixels(images) - expected).max() <= 1e-6 * np.abs(expected).max()


# --- noise of another measurement -------------------------------------------------------------------------------------


def test_noise_of_another_measurement_is_found_in_the_store(engine, together, apart, tmp_path):
    expected, _ = reconstruct(engine, together)
    noise, scan = apart
    images, problems = reconstruct(engine, noise, store=NoiseStore(tmp_path))
    assert images == []
    assert list(problems) == []
    images, problems = reconstruct(engine, scan, store=NoiseStore(tmp_path))
    assert list(problems) == []
    assert_alike(images, expected)
    origin, samples, factor, condition = said(images[0])
    assert origin.startswith("store, measurement 00000_0_1_56, ")
    assert [samples, factor, condition] == said(expected[0])[1:]
    assert (said(expected[0])[0], samples) == ("stream", f"samples {32 * 256}")
    plan = ScanPlan(**SMALL)
    assert float(factor.split()[-1]) == pytest.approx(plan.sample_time / 5.0 * 0.793, rel=1e-3)
    truth = np.linalg.cond(simulate(plan).truth.noise_covariance)
    assert float(condition.split()[-1]) == pytest.approx(truth, rel=0.1)


def test_two_connections_to_one_server(engine, together, apart, tmp_path):
    config = ConfigFile("zero_filled")

    def talked(scan):
        header, items = scan
        answer = talk(server, config, Header(header), *items, Close())
        assert answer.closed
        assert answer.errors == []
        return answer

    with serving(engine, SessionOptions(noise_store=NoiseStore(tmp_path / "noise"))) as server:
        expected = talked(together).images
        without = talked(apart[1])
        noise = talked(apart[0])
        after = talked(apart[1])
    (warning,) = without.texts
    assert "00000_0_1_56, which is not known" in warning
    assert (noise.images, noise.texts) == ([], [])
    assert after.texts == []
    assert_alike(after.images, expected)
    assert np.abs(pixels(without.images) - pixels(expected)).max() > 1e-2 * pixels(expected).max()


def test_noise_of_a_measurement_that_gives_no_images_here(engine, together, apart, tmp_path):
    """As a stock client sends it: by the name of Gadgetron's configuration, the encoding three-dimensional."""
    (text, noise), (header, items) = apart
    volume = text.replace("<z>1</z></matrixSize>", "<z>24</z></matrixSize>")
    assert parse_header(volume).refusal
    with serving(engine, SessionOptions(noise_store=NoiseStore(tmp_path / "noise"))) as server:
        config = ConfigFile("default_measurement_dependencies.xml")
        answer = talk(server, config, Header(volume), *noise, Close())
        assert (answer.images, answer.texts, answer.errors) == ([], [], [])
        after = talk(server, ConfigFile("zero_filled"), Header(header), *items, Close())
        with_images = talk(server, config, Header(volume), *together[1], Close())
    assert after.texts == []
    assert_alike(after.images, reconstruct(engine, together)[0])
    assert any("24 partitions" in text for text in with_images.texts)


def test_files_and_groups(engine, together, apart, tmp_path):
    """What --noise names goes before whatever else there is."""
    expected, _ = reconstruct(engine, together)
    (header, noise), scan = apart
    write_scan(tmp_path / "noise.h5", header, noise, group="dataset_1")
    given = read_noise(tmp_path / "noise.h5", "dataset_1")
    images, problems = reconstruct(engine, scan, given=given)
    assert list(problems) == []
    assert_alike(images, expected)
    assert said(images[0])[0] == "file noise.h5, group dataset_1"
    louder = Readouts(noise[0].headers, 2 * noise[0].data)
    write_scan(tmp_path / "louder.h5", header, [louder])
    images, _ = reconstruct(engine, together, given=read_noise(tmp_path / "louder.h5"))
    assert said(images[0])[0] == "file louder.h5, group dataset"


def test_a_file_without_noise_is_refused(apart, tmp_path):
    write_scan(tmp_path / "scan.h5", *apart[1])
    with pytest.raises(DataError, match="has no noise readouts"):
        read_noise(tmp_path / "scan.h5")


def test_simulated_files_through_replay(tmp_path):
    plan = ScanPlan(**SMALL, noise_scan="dependent")
    write_simulation(plan, tmp_path / "scan.h5")
    write_simulation(ScanPlan(**SMALL), tmp_path / "together.h5")
    engine, store = SharedEngine(), NoiseStore(tmp_path / "store")
    _, summary = replay(noise_path(tmp_path / "scan.h5"), tmp_path / "none.h5", FAST, engine, noise_store=store)
    assert (summary.images, list(summary.problems)) == (0, [])
    _, summary = replay(tmp_path / "scan.h5", tmp_path / "images.h5", FAST, engine, noise_store=store)
    assert list(summary.problems) == []
    replay(tmp_path / "together.h5", tmp_path / "expected.h5", FAST, engine)
    assert_alike(*(read_images(tmp_path / name)[1] for name in ("images.h5", "expected.h5")))


def test_dependencies_in_the_header():
    def xml(*dependencies):
        inner = "".join(
            f"<measurementDependency><dependencyType>{kind}</dependencyType><measurementID>{name}</measurementID>"
            "</measurementDependency>"
            for kind, name in dependencies
        )
        return header_xml(before=f"<measurementInformation>{inner}</measurementInformation>")

    assert parse_header(xml()).noise_dependency == ""
    assert parse_header(xml(("SenMap", "1"), ("NOISE", " a_b "), ("Noise", "3"))).noise_dependency == "a_b"


# --- what is not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_store", [False, True])
def test_noise_that_is_not_known_is_reported_and_the_images_come(engine, apart, tmp_path, with_store):
    store = NoiseStore(tmp_path) if with_store else None
    images, problems = reconstruct(engine, apart[1], store=store)
    (problem,) = problems
    assert not problem.damage
    assert (str(tmp_path) if with_store else "no noise store") in problem.text
    assert problem.text in images[0].attributes
    assert "--noise FILE" in problem.text
    header, items = apart[1]
    plain, _ = reconstruct(engine, (header, items), Settings.of(method="zero_filled", whiten=False))
    np.testing.assert_array_equal(pixels(images), pixels(plain))
    assert said(images[0]) == ["none"]


def test_noise_alone_without_a_store_is_reported(engine, apart):
    images, problems = reconstruct(engine, apart[0])
    (problem,) = problems
    assert (images, problem.damage) == ([], False)
    assert "--noise-store" in problem.text


def test_noise_alone_without_a_name_is_reported(engine, apart, tmp_path):
    (header, noise), _ = apart
    nameless = re.sub("<measurementID>.*?</measurementID>", "", header)
    _, problems = reconstruct(engine, (nameless, noise), store=NoiseStore(tmp_path))
    assert "no measurementID" in str(*problems)


def test_a_scan_without_any_readout_is_an_error_as_ever(engine, apart, tmp_path):
    with pytest.raises(DataError, match="no image readouts"):
        reconstruct(engine, (apart[0][0], []), store=NoiseStore(tmp_path))


def test_a_store_that_cannot_be_written_is_reported(engine, apart, tmp_path):
    (tmp_path / "file").touch()
    _, problems = reconstruct(engine, apart[0], store=NoiseStore(tmp_path / "file"))
    assert "cannot be written" in str(*problems)


# --- other coils ------------------------------------------------------------------------------------------------------


def labelled(header, labels):
    xml = "".join(
        f"<coilLabel><coilNumber>{i}</coilNumber><coilName>{label}</coilName></coilLabel>"
        for i, label in enumerate(labels)
    )
    unnamed = re.sub(r"<coilLabel>.*?</coilLabel>", "", header, flags=re.DOTALL)
    return unnamed.replace("</receiverChannels>", f"</receiverChannels>{xml}")


def test_noise_of_other_coils_is_not_used(engine, apart, tmp_path):
    (header, noise), scan = apart
    store = NoiseStore(tmp_path)
    reconstruct(engine, (header, [Readouts(noise[0].headers, noise[0].data[:, :3])]), store=store)
    images, problems = reconstruct(engine, scan, store=store)
    assert "3 coils, the image readouts 4" in str(*problems)
    store = NoiseStore(tmp_path / "other")  # noise of other coils is not replaced
    reconstruct(engine, (labelled(header, "ABCD"), noise), store=store)
    images, problems = reconstruct(engine, (labelled(scan[0], "ABCX"), scan[1]), store=store)
    assert "other coils than the images (D, X)" in str(*problems)
    assert said(images[0]) == ["none"]
    assert "other coils than the images (D, X)" in images[0].attributes


def test_coils_in_another_order_are_sorted_by_their_names(engine, together, apart, tmp_path):
    (header, noise), scan = apart
    store, order = NoiseStore(tmp_path), [2, 0, 3, 1]
    labels = np.array(list("ABCD"))
    shuffled = Readouts(noise[0].headers, noise[0].data[:, order])
    reconstruct(engine, (labelled(header, labels[order]), [shuffled]), store=store)
    images, problems = reconstruct(engine, (labelled(scan[0], labels), scan[1]), store=store)
    assert list(problems) == []
    assert_alike(images, reconstruct(engine, together)[0])


def test_noise_of_the_stream_goes_before_that_of_the_store(tmp_path):
    dependency = "<dependencyType>noise</dependencyType><measurementID>1</measurementID>"
    inner = (
        f"<measurementInformation><measurementDependency>{dependency}</measurementDependency></measurementInformation>"
    )
    store, problems = NoiseStore(tmp_path), Problems()
    store.put("1", statistics(seed=2))
    noise = ScanNoise(parse_header(header_xml(before=inner)), problems, whiten=True, sources=NoiseSources(store=store))
    noise.add(readouts(40, 2, 16, seed=1, flags=NOISE))
    assert noise.whitening(2, 5.0).notes == ()
    assert noise.used[0] == "stream"


# --- the store --------------------------------------------------------------------------------------------------------


def statistics(count=40, coils=2, seed=0):
    found = NoiseStatistics(("left", "right")[:coils])
    found.add(readouts(count, coils, 16, seed=seed, flags=NOISE))
    return found
