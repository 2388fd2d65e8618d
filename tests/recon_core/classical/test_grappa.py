import numpy as np
import pytest
import torch

from recon_core.classical.grappa import (
    Grappa,
    LineGrid,
    fill_gaps,
    grappa,
    grappa_weights,
    line_grid,
    longest_run,
)
from recon_core.coils.calibration import time_average
from recon_core.coils.walsh import walsh_maps
from recon_core.errors import DataError
from recon_core.metrics.measures import best_scale, nrmse
from recon_core.options import GrappaOptions
from recon_core.physics.fourier import fft, ifft
from recon_core.simulate.sampling import (
    full_mask,
    interleaved_mask,
    partial_fourier_mask,
    uniform_mask,
    variable_density_mask,
)
from tests.recon_core.support import run


def pattern(text):
    return torch.tensor([character == "|" for character in text])


def learn(hybrid, mask):
    return grappa(hybrid, mask, *time_average(hybrid, mask))


def with_block(hybrid, mask, block, *, lines_each_side):
    grids = [line_grid(row) for row in mask]
    weights = grappa_weights(fft(block, (-1,)), grids[0].step, lines_each_side=lines_each_side)
    return fill_gaps(hybrid, mask, grids, weights)


def root_sum_of_squares(hybrid):
    return torch.linalg.vector_norm(ifft(hybrid, (-2,)), dim=1).numpy()


def relative(result, expected):
    return np.linalg.norm(result - expected) / np.linalg.norm(expected)


def measure(kspace, mask):
    mask = torch.as_tensor(mask, dtype=torch.bool)
    return ifft(torch.as_tensor(kspace) * mask[:, None, :, None], (-1,)), mask


@pytest.fixture
def scan(smooth_maps, disc):
    """A function that measures a still disc; gives complete hybrid data, measured ones and maps."""

    def make(mask, n_coils=8, n_x=36):
        n_frames, n_y = mask.shape
        maps = torch.tensor(smooth_maps(n_coils, n_y, n_x))
        complete = fft(maps * torch.tensor(disc(n_y, n_x)), (-2,)).expand(n_frames, -1, -1, -1)
        mask = torch.tensor(mask)
        return complete, complete * mask[:, None, :, None], mask, maps

    return make


class TestGolden:
    def test_time_average(self, golden, phantom_kspace):
        expected = golden("case_grappa")
        completed, notes = learn(*measure(phantom_kspace, golden("case_phantom")["mask_shift"]))
        assert not notes
        assert relative(fft(completed[:1], (-1,))[0].numpy(), expected["own_full_kspace_f0"]) < 1e-4
        images = root_sum_of_squares(completed)
        assert relative(images[expected["own_rss_frames"]], expected["own_full_rss"]) < 1e-4

    def test_block_of_the_average(self, golden, phantom_kspace):
        expected = golden("case_grappa")
        hybrid, mask = measure(phantom_kspace, golden("case_phantom")["mask_shift"])
        completed = with_block(hybrid, mask, time_average(hybrid, mask)[0][:, 36:60], lines_each_side=1)
        assert relative(root_sum_of_squares(completed)[expected["frames"]], expected["own_acs2x5_rss"]) < 1e-4

    def test_block_of_the_frame(self, golden, phantom_kspace):
        expected = golden("case_grappa")["own_fixed_acs2x5_rss_f0"]
        hybrid, mask = measure(phantom_kspace[:1], golden("case_phantom")["mask_fixed"][:1])
        completed = with_block(hybrid, mask, hybrid[0, :, 36:60], lines_each_side=1)
        assert relative(root_sum_of_squares(completed)[0], expected) < 1e-4

    def test_as_good_as_the_packages(self, golden, phantom_kspace):
        expected, phantom = golden("case_grappa"), golden("case_phantom")
        truth = np.abs(phantom["truth"]) * np.linalg.norm(phantom["coil_maps"], axis=0)
        hybrid, mask = measure(phantom_kspace, phantom["mask_shift"])
        average, _ = time_average(hybrid, mask)
        complete = root_sum_of_squares(learn(hybrid, mask)[0])
        short = root_sum_of_squares(with_block(hybrid, mask, average[:, 36:60], lines_each_side=1))
        for index, frame in enumerate(expected["frames"]):
            theirs = expected["pygrappa_full_rss"][index]
            assert relative(complete[frame], truth[frame]) < 1.05 * relative(theirs, truth[frame])
            theirs = expected["pygrappa_acs_rss"][index]
            assert relative(short[frame], truth[frame]) < 1.05 * relative(theirs, truth[frame])


@pytest.mark.parametrize(
    ("case", "limit"),
    [
        ("mini", 0.06),
        pytest.param("scd201", 0.085, marks=pytest.mark.slow),
        pytest.param("scd301", 0.125, marks=pytest.mark.slow),
    ],
)
def test_accuracy_with_estimated_maps(semi_real, case, limit):
    for data in semi_real(case):
        hybrid, mask = measure(data.kspace, data.mask)
        maps, _ = walsh_maps(*time_average(hybrid, mask))
        image = run(Grappa(GrappaOptions()), hybrid, maps, mask)
        shading = torch.linalg.vector_norm(torch.einsum("rc,cyx->ryx", torch.tensor(data.colouring), maps), dim=0)
        image = (image * shading).numpy()
        assert nrmse(image * best_scale(image, data.reference), data.reference) < limit


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("|||||||||", LineGrid(1, 0, 8)),
        ("...||||||", LineGrid(1, 3, 8)),
        ("|..|..|..|", LineGrid(3, 0, 9)),
        (".|...|...|..", LineGrid(4, 1, 9)),
        ("|...|.|||||||...|...|", LineGrid(4, 0, 20)),
        ("......|...|.|||||||...|", LineGrid(4, 6, 22)),
        ("|.|||||.|.|", LineGrid(2, 0, 10)),
        ("...|.....", LineGrid(1, 3, 3)),
        (".........", None),
    ],
)
def test_line_grid(text, grid):
    assert line_grid(pattern(text)) == grid


@pytest.mark.parametrize(
    "text",
    [
        "|...|...||..|.|",  # a line beside the grid and a block
        "|...|...|.......|",  # a line is lost
        "|..|...|..|...|",  # no step
        "|...||.|.||.|...|",  # two blocks
        "||..........|",  # no grid at all
    ],
)
def test_other_patterns_name_what_takes_them(text):
    with pytest.raises(DataError, match="cg_sense or low_rank_sparse"):
        line_grid(pattern(text))


def test_variable_density_is_refused(scan):
    _, hybrid, mask, maps = scan(variable_density_mask(4, 48, 4, 8))
    with pytest.raises(DataError, match="cg_sense"):
        run(Grappa(GrappaOptions()), hybrid, maps, mask)


def test_longest_run():
    assert longest_run(pattern("|..|||.|||.")) == slice(3, 6)
    assert longest_run(pattern("..||")) == slice(2, 4)
    assert longest_run(pattern("...")) == slice(0, 0)


@pytest.mark.parametrize("n_y", [64, 61])
@pytest.mark.parametrize(("step", "limit"), [(2, 0.05), (3, 0.05), (4, 0.15)])
def test_interleaved(scan, n_y, step, limit):
    complete, hybrid, mask, maps = scan(interleaved_mask(2 * step, n_y, step))
    completed, notes = learn(hybrid, mask)
    assert not notes
    assert (completed - complete).norm() < limit * complete.norm()
    assert torch.equal(completed * mask[:, None, :, None], hybrid)
    image = run(Grappa(GrappaOptions()), hybrid, maps, mask)
    torch.testing.assert_close(image, (maps.conj() * ifft(completed, (-2,))).sum(1), rtol=1e-4, atol=1e-4)


def test_short_block_takes_the_small_kernel(scan):
    complete, hybrid, mask, _ = scan(uniform_mask(3, 64, 3, 14))
    completed, notes = learn(hybrid, mask)
    assert len(notes) == 1
    assert "2 x 5 instead of 4 x 5" in notes[0]
    assert (completed - complete).norm() < 0.05 * complete.norm()


def test_separate_reference(scan):
    """Frames that all miss the same lines have nothing to learn from; a reference of another intensity has."""
    complete, hybrid, mask, maps = scan(uniform_mask(3, 64, 3))
    with pytest.raises(DataError, match=r"R = 3 needs at least 4 adjacent reference lines .* got 1 "):
        run(Grappa(GrappaOptions()), hybrid, maps, mask)
    measured = torch.zeros(64, dtype=torch.bool)
    measured[16:48] = True
    reference = 7 * complete[0] * measured[:, None]
    completed, _ = grappa(hybrid, mask, reference, measured)
    assert (completed - complete).norm() < 0.05 * complete.norm()
    image = run(Grappa(GrappaOptions()), hybrid, maps, mask, (reference, measured))
    torch.testing.assert_close(image, (maps.conj() * ifft(completed, (-2,))).sum(1), rtol=1e-4, atol=1e-4)


def test_complete_frames_stay_as_they_are(scan):
    _, hybrid, mask, _ = scan(full_mask(2, 20))
    completed, notes = learn(hybrid, mask)
    assert torch.equal(completed, hybrid)
    assert not notes


def test_partial_fourier_stays_zero(scan):
    complete, hybrid, mask, _ = scan(partial_fourier_mask(uniform_mask(2, 64, 3, 24), 0.7))
    completed, _ = learn(hybrid, mask)
    first = int(mask[0].nonzero()[0])
    assert first > 3
    assert not completed[:, :, :first].any()
    assert completed[:, :, first:].ne(0).any(-1).all()
    assert (completed - complete)[:, :, first:].norm() < 0.05 * complete.norm()


def test_an_empty_frame_is_zero_and_noted(scan):
    complete, hybrid, mask, maps = scan(interleaved_mask(7, 48, 3))
    mask[3] = False
    completed, notes = learn(hybrid, mask)
    assert not completed[3].any()
    assert notes == ("grappa: no line was measured in frames 3, which stay empty",)
    assert (completed - complete)[[0, 6]].norm() < 0.05 * complete[[0, 6]].norm()
    nothing = torch.zeros_like(mask)
    assert not run(Grappa(GrappaOptions()), hybrid, maps, nothing).any()


def test_frames_of_different_steps(scan):
    masks = np.concatenate([uniform_mask(1, 60, 2, 20), uniform_mask(1, 60, 3, 20), full_mask(1, 60)])
    complete, hybrid, mask, _ = scan(masks)
    completed, _ = learn(hybrid, mask)
    for frame in range(3):
        assert (completed - complete)[frame].norm() < 0.05 * complete[frame].norm()


def test_frames_in_portions_are_the_same(scan, monkeypatch):
    _, hybrid, mask, _ = scan(interleaved_mask(7, 48, 3))
    whole, _ = learn(hybrid, mask)
    monkeypatch.setattr("recon_core.classical.grappa._CHUNK_BYTES", {"cpu": 1, "cuda": 1})
    torch.testing.assert_close(learn(hybrid, mask)[0], whole, rtol=1e-4, atol=1e-5)


def test_a_dead_coil_changes_nothing(scan):
    complete, hybrid, mask, _ = scan(interleaved_mask(6, 48, 3))
    dead = torch.cat([hybrid, torch.zeros_like(hybrid[:, :1])], 1)
    completed, _ = learn(dead, mask)
    assert not completed[:, -1].any()
    assert (completed[:, :-1] - complete).norm() < 0.05 * complete.norm()


def test_identical_coils_are_solved(scan):
    """The equations are rank deficient; the Tikhonov weight is what makes them solvable."""
    complete, hybrid, mask, _ = scan(interleaved_mask(6, 48, 2))
    completed, _ = learn(torch.cat([hybrid, hybrid], 1), mask)
    assert (completed[:, 8:] - complete).norm() < 0.05 * complete.norm()


def test_nothing_but_zeros_to_learn_from(scan):
    _, hybrid, mask, _ = scan(uniform_mask(2, 30, 3))
    completed, _ = grappa(hybrid, mask, torch.zeros_like(hybrid[0]), torch.ones(30, dtype=torch.bool))
    assert torch.equal(completed, hybrid)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_any_unit_of_the_data(scan, scale):
    _, hybrid, mask, _ = scan(interleaved_mask(4, 32, 2))
    torch.testing.assert_close(learn(scale * hybrid, mask)[0] / scale, learn(hybrid, mask)[0], rtol=1e-3, atol=1e-4)


def test_values_that_are_not_finite(scan):
    _, hybrid, mask, _ = scan(interleaved_mask(4, 32, 2))
    hybrid[0, 0, 0, 3] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        learn(hybrid, mask)


def test_a_narrow_readout_is_refused(scan):
    _, hybrid, mask, _ = scan(interleaved_mask(4, 32, 2), n_x=4)
    with pytest.raises(DataError, match="at least 5 samples"):
        learn(hybrid, mask)


def test_kx_ends_are_not_periodic():
    """A kernel that takes its source one sample further right leaves the last sample without one."""
    kspace = torch.arange(1.0, 10.0).to(torch.complex64).expand(1, 1, 6, 9)
    mask = pattern("|.|.|.")[None]
    weights = torch.zeros(5, 2, 1, 1, 1, dtype=torch.complex64)
    weights[3, 0] = 1
    hybrid = ifft(kspace, (-1,)) * mask[:, None, :, None]
    filled = fft(fill_gaps(hybrid, mask, [line_grid(mask[0])], weights), (-1,))
    expected = torch.cat([kspace[0, 0, 1, 1:], torch.zeros(1)])
    torch.testing.assert_close(filled[0, 0, 1], expected, rtol=1e-5, atol=1e-5)


def test_every_frame_may_learn_from_its_own_lines(semi_real):
    [data] = semi_real("scd201")
    taken = data.mask[:3].copy()
    taken[1] = False
    hybrid, mask = measure(data.kspace[:3] * taken[:, None, :, None], taken)
    maps, _ = walsh_maps(*time_average(hybrid, mask))
    each = Grappa(GrappaOptions(calibration="frame"))
    series = run(each, hybrid, maps, mask)
    for frame in (0, 2):
        this = slice(frame, frame + 1)
        alone = run(Grappa(GrappaOptions()), hybrid[this], maps, mask[this])
        torch.testing.assert_close(series[this], alone)
    assert not series[1].any()
    assert not torch.allclose(series[0], run(Grappa(GrappaOptions()), hybrid, maps, mask)[0], rtol=1e-3)


def test_frames_without_reference_lines_cannot_learn_from_their_own(semi_real):
    data = semi_real("scd301")[0]
    hybrid, mask = measure(data.kspace[:4], data.mask[:4])
    maps, _ = walsh_maps(*time_average(hybrid, mask))
    with pytest.raises(DataError, match="cg_sense"):
        run(Grappa(GrappaOptions(calibration="frame")), hybrid, maps, mask)
