"""Methods of one's own: every form of them, where they are found, and what nobody may name."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from recon_core import reconstruct, register_method
from recon_core.errors import CinestreamError, ModelError, SettingsError
from recon_core.methods import METHODS, OWN_METHODS, MethodInfo, find_method, method_names, network_names
from recon_core.networks.base import ImageNetwork
from recon_core.networks.golden import fill, fill_value
from recon_core.options import Options, ReconOptions, apply, option
from recon_core.own_methods import allow_methods, allowed_by_operator, load_method
from recon_core.simulate.kspace import simulate_cine
from recon_core.simulate.radial import simulate_radial
from recon_core.weights.loading import import_weights, write_weights
from recon_core.weights.manifest import WeightsFacts, find_weights
from tests.helpers.networks import tiny
from tests.helpers.paths import REPOSITORY

pytestmark = pytest.mark.usefixtures("_coil_maps_once")

EXAMPLES = REPOSITORY / "docs" / "examples"


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch):
    monkeypatch.delenv("CINESTREAM_METHODS", raising=False)


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.setenv("CINESTREAM_METHODS", str(EXAMPLES))


@pytest.fixture(scope="module")
def scan():
    return simulate_cine(6, (48, 40), 4, acceleration=3, seed=2)


class Half:
    """Half of the zero-filled image.

    More about it.
    """

    def __init__(self, options):
        self.options = options

    def __call__(self, data):
        data.notes.append("halved")
        return half(data)


def half(data):
    """Half of it."""
    from recon_core.physics.fourier import ifft

    return (data.maps.conj() * ifft(data.hybrid, (-2,))).sum(1) / 2


def write(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text, encoding="utf-8")


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Half, half, MethodInfo(target=Half, label="", summary="", reference="")])
def test_registered(scan, method):
    register_method("half", method)
    assert "half" in method_names()
    assert "half" not in network_names()
    result = reconstruct(scan.kspace, "half")
    assert result.method == "half"
    whole = reconstruct(scan.kspace, "zero_filled")
    np.testing.assert_allclose(result.image, whole.image / 2, rtol=1e-4, atol=1e-6)
    assert ("halved" in result.notes) == (method is not half)


def test_the_docstring_is_the_summary():
    register_method("half", Half)
    assert find_method("half").summary == "Half of the zero-filled image"
    register_method("half", half, summary="mine", framewise=True)
    assert (find_method("half").summary, find_method("half").framewise) == ("mine", True)


def test_registered_again(scan):
    register_method("mine", half)
    first = reconstruct(scan.kspace, "mine")
    register_method("mine", lambda data: half(data) * 4)
    np.testing.assert_allclose(reconstruct(scan.kspace, "mine").image, 4 * first.image, rtol=1e-5, atol=1e-6)


class Smoother(torch.nn.Module):
    """A mean over the neighbours in time."""

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Conv3d(2, 2, (3, 1, 1), padding=(1, 0, 0), padding_mode="circular", groups=2, bias=False)
        self.dropout = torch.nn.Dropout(0.5)
        torch.nn.init.constant_(self.mean.weight, 1 / 3)
        self.seen = []

    def forward(self, image):
        self.seen.append(image)
        return self.dropout(self.mean(image))


def test_a_plain_module_maps_the_zero_filled_image(scan):
    module = Smoother()
    register_method("smoother", module)
    assert find_method("smoother").summary == "A mean over the neighbours in time"
    assert "smoother" not in network_names()
    result = reconstruct(scan.kspace, "smoother")
    image = reconstruct(scan.kspace, "zero_filled").image
    expected = (np.roll(image, 1, 0) + image + np.roll(image, -1, 0)) / 3
    assert result.method == "smoother"
    np.testing.assert_allclose(result.image, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    (given,) = module.seen
    assert given.shape == (1, 2, 6, 48, 40)
    assert given.square().sum(1).max().sqrt() == pytest.approx(1, rel=1e-6)
    np.testing.assert_allclose(reconstruct(1e-3 * scan.kspace, "smoother").image, 1e-3 * result.image, rtol=1e-3)


@pytest.mark.parametrize("method", [torch.nn.Conv3d(1, 1, 1), torch.nn.Conv3d(2, 1, 1)])
def test_a_plain_module_that_does_not_fit(scan, method):
    register_method("mine", method)
    with pytest.raises(ModelError, match=r"mine failed: RuntimeError|module must give .*got \(1, 1, 6"):
        reconstruct(scan.kspace, "mine", fallback="none")


@pytest.mark.parametrize("method", [None, "text", 3, object, torch.nn.Conv3d, tiny("unet3d_mr")])
def test_other_forms(method):
    is_module = isinstance(method, torch.nn.Module) or method is torch.nn.Conv3d
    hint = "derived from recon_core.networks.base.ImageNetwork" if is_module else "a class that"
    with pytest.raises(ModelError, match=f"method mine .*{hint}"):
        register_method("mine", method)


def test_wrong_names_and_traits():
    with pytest.raises(SettingsError, match="cg_sense is a method of cinestream"):
        register_method("cg_sense", half)
    with pytest.raises(SettingsError, match="letters, digits"):
        register_method("../mine", half)
    with pytest.raises(SettingsError, match="no trait 'linea'"):
        register_method("mine", half, linea=True)


class Unbuilt(Half):
    def __init__(self, options):
        raise KeyError("window")


def full(data):
    raise torch.cuda.OutOfMemoryError


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (lambda data: data.no_such_field, "mine failed: AttributeError: .*no_such_field"),
        (
            lambda data: half(data)[0],
            r"must give a tensor \(frame, y, x\) = \(6, 48, 40\) torch.complex64, got \(48, 40\)",
        ),
        (lambda data: half(data).abs(), r"got \(6, 48, 40\) torch.float32"),
        (lambda data: half(data).numpy(), r"got \(6, 48, 40\) complex64"),
        (lambda data: None, "got NoneType"),
        (lambda data: half(data) / 0, "not finite"),
        (Unbuilt, "mine failed: KeyError: 'window'"),
        (MethodInfo(target=Unbuilt, label="", summary="", reference=""), "mine failed: KeyError: 'window'"),
        (MethodInfo(target="no.such:thing", label="", summary="", reference=""), "mine failed: ModuleNotFoundError"),
        (full, "mine does not fit into the memory of the GPU; compress the coils"),
    ],
)
def test_a_failing_method_goes_to_the_fallback(scan, method, reason):
    register_method("mine", method)
    with pytest.warns(UserWarning, match=f"not of mine: kt_sense instead of mine: .*{reason}"):
        assert reconstruct(scan.kspace, "mine").method == "kt_sense"
    with pytest.raises(CinestreamError, match=reason):
        reconstruct(scan.kspace, "mine", fallback="none")


def test_a_method_of_samples_off_the_grid():
    pytest.importorskip("finufft", reason="finufft is not installed")
    radial = simulate_radial(frames=3, size=32, coils=3, spokes=12)
    register_method("mine", lambda data: data.zero_filled(), off_grid=True)
    given = {"trajectory": radial.trajectory, "matrix": (32, 32)}
    result = reconstruct(radial.kspace, "mine", fallback="none", **given)
    np.testing.assert_array_equal(result.image, reconstruct(radial.kspace, "zero_filled", **given).image)


def test_a_name_of_what_builds_it(scan):
    register_method("mine", MethodInfo(target=f"{__name__}:Half", label="", summary="", reference=""))
    assert load_method("mine") is Half
    assert reconstruct(scan.kspace, "mine").method == "mine"
    assert load_method("cg_sense").__name__ == "CGSense"


# --- options ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class GainOptions(Options):
    """Options of a gain."""

    gain: float = option(2.0, "factor on the image", minimum=0.0, maximum=10.0)
    kind: str = option("plain", "which", choices=("plain", "other"))


class Gain(Half):
    """A gain."""

    Options = GainOptions

    def __call__(self, data):
        return half(data) * self.options.gain


def test_a_method_gets_its_own_options(scan):
    register_method("gain", Gain)
    images = [reconstruct(scan.kspace, "gain", **values).image for values in ({}, {"gain.gain": "4"}, {})]
    np.testing.assert_allclose(images[1], 2 * images[0], rtol=1e-5)
    np.testing.assert_array_equal(images[2], images[0])


def test_options_are_kept_from_change_to_change():
    register_method("gain", Gain)
    options = apply(ReconOptions.of(method="gain", **{"gain.gain": 3}), {"gain.kind": "other", "iterations": 3})
    assert options.of_method("gain") == GainOptions(gain=3.0, kind="other")
    assert options.cg_sense.iterations == 3
    assert hash(options)
    assert ReconOptions().of_method("gain") == GainOptions()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gain.gain": 11}, "setting 'gain' must be a number from 0 to 10"),
        ({"gain.kind": "third"}, "setting 'kind' must be one of plain, other"),
        ({"gain.size": 11}, "unknown setting 'gain.size'; did you mean gain.kind or gain.gain"),
        ({"gain": 11}, "unknown setting 'gain'"),
        ({"half.size": 11}, "unknown setting 'half.size'; half has no options"),
        ({"absent.size": 11}, r"unknown setting 'absent\.size'"),
    ],
)
def test_wrong_options(values, message):
    register_method("gain", Gain)
    register_method("half", half)
    with pytest.raises(SettingsError, match=message):
        ReconOptions.of(**values)


def test_options_of_another_kind_are_none_of_ours():
    register_method("mine", type("Mine", (Half,), {"Options": dict}))
    assert find_method("mine").options is None


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_of_a_folder(examples, scan):
    allow_methods()
    assert set(OWN_METHODS) == {"small_unrolled", "view_sharing"}
    result = reconstruct(scan.kspace, "view_sharing")
    assert result.method == "view_sharing"
    assert reconstruct(scan.kspace, "view_sharing", periodic=False).image.shape == result.image.shape


def test_view_sharing_takes_the_nearest_line(examples):
    complete = simulate_cine(6, (48, 40), 4, sampling="full", snr=0)
    mask = np.zeros((6, 48), bool)
    mask[[0, 1, 5]] = True
    maps = complete.coil_maps
    images = {
        periodic: reconstruct(complete.kspace, "view_sharing", mask=mask, coil_maps=maps, periodic=periodic).image
        for periodic in (True, False)
    }
    whole = reconstruct(complete.kspace, "zero_filled", coil_maps=maps).image
    for periodic, nearest in ((True, [0, 1, 1, 5, 5, 5]), (False, [0, 1, 1, 1, 5, 5])):
        for frame, source in enumerate(nearest):
            wanted = [whole[source]] + ([whole[1]] if (periodic, frame) == (True, 3) else [])
            assert any(np.allclose(images[periodic][frame], one, atol=1e-4) for one in wanted)


def test_view_sharing_reaches_as_far_as_it_is_set(examples):
    complete = simulate_cine(6, (48, 40), 4, sampling="full", snr=0)
    mask = np.zeros((6, 48), bool)
    mask[0] = True
    result = reconstruct(complete.kspace, "view_sharing", mask=mask, **{"view_sharing.reach": 1})
    assert [bool(image.any()) for image in result.image] == [True, True, False, False, False, True]
    assert "144 lines are in no frame near enough" in result.notes


def test_nothing_is_imported_before_it_is_used(tmp_path, monkeypatch):
    write(tmp_path, "bad", "raise RuntimeError('out of luck')")
    monkeypatch.setenv("CINESTREAM_METHODS", str(tmp_path))
    allow_methods()
    assert "bad" in method_names()
    assert "bad" not in network_names()
    with pytest.raises(ModelError, match=r"bad\.py cannot be imported: RuntimeError: out of luck"):
        find_method("bad")


def test_the_first_folder_counts(tmp_path, monkeypatch):
    write(tmp_path / "a", "mine", "'''First.'''\nMETHOD = lambda data: data")
    write(tmp_path / "b", "mine", "raise RuntimeError")
    write(tmp_path / "b", "not-a-name", "raise RuntimeError")
    monkeypatch.setenv("CINESTREAM_METHODS", os.pathsep.join(str(tmp_path / name) for name in "ab"))
    allow_methods()
    assert [*OWN_METHODS] == ["mine"]
    assert find_method("mine").summary == f"of {tmp_path / 'a' / 'mine.py'}"


def test_files_that_are_none(tmp_path, monkeypatch, caplog):
    write(tmp_path, "empty", "")
    write(tmp_path, "cg_sense", "raise RuntimeError")
    monkeypatch.setenv("CINESTREAM_METHODS", str(tmp_path))
    allow_methods()
    with pytest.raises(ModelError, match=r"empty\.py has no METHOD; it must be a class"):
        find_method("empty")
    assert find_method("cg_sense") is METHODS["cg_sense"]
    assert "cg_sense is a method of cinestream, choose another name" in caplog.text


def test_dataclasses_in_a_file(tmp_path, monkeypatch):
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    text += "@dataclass\nclass METHOD:\n    options: object\n    def __call__(self, data): return data\n"
    write(tmp_path, "mine", text)
    monkeypatch.setenv("CINESTREAM_METHODS", str(tmp_path))
    allow_methods(["mine"])
    assert load_method("mine")(3).options == 3


# --- packages ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with two methods."""
    info = tmp_path / "lab_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-methods\nVersion: 1.0\n", encoding="utf-8")
    lines = "[cinestream.methods]\nlab = lab_methods:Lab\nlost = lab_methods:Lost\n"
    (info / "entry_points.txt").write_text(lines, encoding="utf-8")
    text = "class Lab:\n    def __init__(self, options): pass\n    def __call__(self, data): return data.hybrid[:, 0]\n"
    (tmp_path / "lab_methods.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


def test_entry_points(package, scan):
    allow_methods()
    assert [*OWN_METHODS] == ["lab", "lost"]
    assert reconstruct(scan.kspace, "lab").method == "lab"
    with pytest.raises(ModelError, match="method lost of package lab_methods:Lost cannot be imported: AttributeError"):
        reconstruct(scan.kspace, "lost", fallback="none")


# --- who may name what ------------------------------------------------------------------------------------------------


def test_only_what_is_allowed_is_known(examples):
    with pytest.raises(ModelError, match="no method 'view_sharing'"):
        find_method("view_sharing")
    allow_methods(["view_sharing", "cg_sense"])
    assert [*OWN_METHODS] == ["view_sharing"]
    with pytest.raises(ModelError, match="no method 'small_unrolled'"):
        find_method("small_unrolled")
    with pytest.raises(SettingsError, match=r"no method 'magic'; there are .*, small_unrolled, view_sharing. Your own"):
        allow_methods(["magic"])


@pytest.mark.parametrize("name", ["os", "os.path", "../view_sharing", "view_sharing.py", ""])
def test_no_name_leads_elsewhere(examples, name):
    with pytest.raises(SettingsError, match=r"no method .* Your own are looked for"):
        allow_methods([name])


def test_the_operator_may_list_them_in_the_environment(monkeypatch):
    monkeypatch.setenv("CINESTREAM_ALLOW_METHODS", " a, b,,")
    assert allowed_by_operator() == ["a", "b"]
    monkeypatch.delenv("CINESTREAM_ALLOW_METHODS")
    assert allowed_by_operator() == []


def test_looking_for_methods_is_light(examples):
    code = "import sys, recon_core.own_methods as own; own.allow_methods(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- networks ---------------------------------------------------------------------------------------------------------


def test_a_network_that_fails_goes_to_the_fallback(examples, scan, tmp_path, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    allow_methods(["small_unrolled"])
    kind = load_method("small_unrolled")
    network = kind(kind.Config(cascades=1, channels=1))
    write_weights(network, WeightsFacts(method="small_unrolled"), "small_unrolled", tmp_path)
    monkeypatch.setattr(kind, "forward", lambda self, image, consistency: image @ image.new_zeros(3, 3))
    with pytest.warns(UserWarning, match="kt_sense instead of small_unrolled: small_unrolled failed: RuntimeError"):
        assert reconstruct(scan.kspace, "small_unrolled").method == "kt_sense"
    with pytest.raises(ModelError, match="small_unrolled failed: RuntimeError"):
        reconstruct(scan.kspace, "small_unrolled", fallback="none")


def test_a_network_has_weights_and_a_range(examples, scan, tmp_path, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path / "weights"))
    allow_methods(["small_unrolled"])
    assert "small_unrolled" in network_names()
    with pytest.raises(ModelError, match=r"no weights for small_unrolled.*cinestream import-weights small_unrolled"):
        reconstruct(scan.kspace, "small_unrolled", fallback="none")
    kind = load_method("small_unrolled")
    assert issubclass(kind, ImageNetwork)
    network = kind(kind.Config(cascades=2, channels=4))
    fill(network)
    torch.save(network.state_dict(), tmp_path / "trained.pth")
    entry, report = import_weights(
        "small_unrolled", tmp_path / "trained.pth", folder=tmp_path / "weights", config={"cascades": 2, "channels": "4"}
    )
    assert report.complete
    assert entry == find_weights("small_unrolled")
    with pytest.warns(UserWarning, match="doubtful"):  # it has learned nothing
        result = reconstruct(scan.kspace, "small_unrolled", outside_range="note")
    assert result.method == "small_unrolled"
    assert any(note.startswith("weights small_unrolled (sha256") for note in result.notes)


@pytest.mark.filterwarnings("ignore:the images of small_unrolled are doubtful")
def test_weights_that_were_replaced_are_used(scan, tmp_path, monkeypatch):
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("CINESTREAM_METHODS", str(EXAMPLES))
    kind = load_method("small_unrolled")
    images = []
    for gain in (0.1, 0.2):
        network = kind(kind.Config(cascades=1, channels=2))
        fill(network, lambda key, shape, gain=gain: fill_value(key, shape, gain))
        write_weights(network, WeightsFacts(method="small_unrolled"), "small_unrolled", tmp_path)
        images.append(reconstruct(scan.kspace, "small_unrolled", outside_range="note").image)
    assert not np.allclose(*images)


def test_a_network_of_a_notebook(scan, tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Config:
        factor: float = 1.0

    class Scaled(ImageNetwork):
        """An image that is scaled."""

        scale = "free"

        def __init__(self, config=None):
            super().__init__()
            self.config = config or Config()
            self.factor = torch.nn.Parameter(torch.tensor(2.0))

        def working_bytes(self, shape):
            return 0

        def forward(self, image, consistency):
            return image * self.factor

    Scaled.Config = Config
    register_method("scaled", Scaled)
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))
    write_weights(Scaled(), WeightsFacts(method="scaled"), "scaled", tmp_path)
    with pytest.warns(UserWarning, match="doubtful"):
        image = reconstruct(scan.kspace, "scaled", outside_range="note").image
    np.testing.assert_allclose(image, 2 * reconstruct(scan.kspace, "zero_filled").image, rtol=1e-4, atol=1e-5)


def test_samples_without_an_option_are_its_own_matter():
    """A method may say that its spread is known, and have no option for how many samples that takes."""
    scan = simulate_cine(frames=4, matrix=(32, 32), coils=4)

    def spread(data):
        data.extra["uncertainty"] = data.hybrid[:, 0].abs()
        return data.hybrid[:, 0]

    register_method("spread", spread, samples=4)
    result = reconstruct(scan.kspace, "spread", extra_series="uncertainty")
    assert sorted(result.extra) == ["uncertainty"]
