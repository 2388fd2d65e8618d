import numpy as np
import pytest
import torch

from recon_core.errors import DataError
from recon_core.physics import sense
from recon_core.physics.fourier import fft, ifft
from recon_core.physics.sense import PlaneSenseOperator, SenseOperator

CASES = [
    # frames, coils, y, x, maps per frame
    (1, 1, 8, 6, False),
    (3, 4, 9, 5, False),
    (2, 3, 10, 7, True),
    (5, 30, 7, 4, False),
    (4, 2, 1, 3, True),
    (2, 2, 14, 1, False),
]


def build(n_frames, n_coils, n_y, n_x, per_frame):
    generator = torch.Generator().manual_seed(n_frames * n_y)
    shape = (n_frames, n_coils, n_y, n_x) if per_frame else (n_coils, n_y, n_x)
    maps = torch.randn(shape, dtype=torch.complex64, generator=generator)
    mask = torch.rand(n_frames, n_y, generator=generator) < 0.5
    image = torch.randn(n_frames, n_y, n_x, dtype=torch.complex64, generator=generator)
    hybrid = torch.randn(n_frames, n_coils, n_y, n_x, dtype=torch.complex64, generator=generator)
    return maps, mask, image, hybrid


def plain_forward(maps, mask, image):
    """The definition, with all shifts."""
    coil_images = (maps if maps.ndim == 4 else maps[None]) * image[:, None]
    shifted = np.fft.ifftshift(coil_images.numpy(), -2)
    kspace = np.fft.fftshift(np.fft.fft(shifted, axis=-2, norm="ortho"), -2)
    return kspace * mask.numpy()[:, None, :, None]


@pytest.mark.parametrize("case", CASES)
def test_forward_is_the_plain_definition(case):
    maps, mask, image, _ = build(*case)
    result = SenseOperator(maps, mask).forward(image)
    assert result.shape == (case[0], case[1], case[2], case[3])
    np.testing.assert_allclose(result, plain_forward(maps, mask, image), atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_adjoint_and_normal(case):
    maps, mask, image, hybrid = build(*case)
    operator = SenseOperator(maps, mask)
    forward, back = operator.forward(image), operator.adjoint(hybrid)
    torch.testing.assert_close(
        torch.vdot(hybrid.flatten(), forward.flatten()),
        torch.vdot(back.flatten(), image.flatten()),
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close(operator.normal(image), operator.adjoint(forward), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES[:3])
def test_linear(case):
    maps, mask, image, _ = build(*case)
    operator = SenseOperator(maps, mask)
    other = image.flip(0) * 1j
    combined = operator.forward((2 - 1j) * image + other)
    expected = (2 - 1j) * operator.forward(image) + operator.forward(other)
    torch.testing.assert_close(combined, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("n_columns", [1, 4, 13, 100])
def test_portions_change_nothing(per_frame, n_columns):
    maps, mask, image, hybrid = build(5, 3, 8, 6, per_frame)
    whole = SenseOperator(maps, mask)
    parts = SenseOperator(maps, mask, workspace_bytes=n_columns * 3 * 8 * 8)
    assert n_columns == 100 or len(list(parts._portions())) > 1
    torch.testing.assert_close(parts.normal(image), whole.normal(image))
    torch.testing.assert_close(parts.forward(image), whole.forward(image))
    torch.testing.assert_close(parts.adjoint(hybrid), whole.adjoint(hybrid))


def periodic_mask(n_frames, n_y, step, *, interleaved, n_lines=1):
    mask = torch.zeros(n_frames, n_y, dtype=torch.bool)
    for frame in range(n_frames):
        for line in range(n_lines):
            mask[frame, (frame * interleaved + line) % step :: step] = True
    return mask


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize(
    ("n_y", "step", "n_lines"), [(12, 4, 1), (12, 4, 3), (15, 3, 1), (9, 9, 2), (7, 1, 1), (7, 1, 0)]
)
def test_folding_is_the_same_operator(n_y, step, n_lines, per_frame, interleaved):
    maps, _, image, _ = build(5, 10, n_y, 6, per_frame)
    mask = periodic_mask(5, n_y, step, interleaved=interleaved, n_lines=n_lines)
    operator = SenseOperator(maps, mask, workspace_bytes=2 * n_y * 8)
    assert operator._folds == step
    expected = operator.adjoint(operator.forward(image))
    torch.testing.assert_close(operator.normal(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_coils", [3, 4])
def test_folding_only_where_it_is_cheaper(n_coils):
    maps, *_ = build(2, n_coils, 12, 6, False)
    operator = SenseOperator(maps, periodic_mask(2, 12, 4, interleaved=True))
    assert operator._folds == (4 if n_coils == 4 else 0)


def test_one_irregular_frame_prevents_folding():
    maps, *_ = build(2, 8, 12, 6, False)
    mask = periodic_mask(2, 12, 4, interleaved=True)
    mask[1, 6] = True
    assert SenseOperator(maps, mask)._folds == 0


@pytest.mark.parametrize("maps_axes", ["shared", "batch", "batch and frame"])
@pytest.mark.parametrize("folds", [False, True])
def test_batch_axis_is_each_slice_on_its_own(maps_axes, folds):
    generator = torch.Generator().manual_seed(1)
    lead = {"shared": (), "batch": (2,), "batch and frame": (2, 3)}[maps_axes]
    maps = torch.randn(*lead, 4, 8, 5, dtype=torch.complex64, generator=generator)
    mask = periodic_mask(6, 8, 4, interleaved=True).reshape(2, 3, 8)
    mask[1, 2, 1] ^= not folds
    image = torch.randn(2, 3, 8, 5, dtype=torch.complex64, generator=generator)
    together = SenseOperator(maps, mask, workspace_bytes=700)
    lines = together.forward(image)
    for i in range(2):
        alone = SenseOperator(maps[i] if lead else maps, mask[i])
        torch.testing.assert_close(lines[i], alone.forward(image[i]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.adjoint(lines)[i], alone.adjoint(lines[i]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.normal(image)[i], alone.normal(image[i]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("folds", [False, True])
def test_selected_frames(per_frame, folds):
    maps, mask, image, hybrid = build(5, 10, 9, 5, per_frame)
    if folds:
        mask = periodic_mask(5, 9, 3, interleaved=True)
    whole, part = SenseOperator(maps, mask), SenseOperator(maps, mask).select(slice(1, 3))
    assert part.n_frames == 2
    torch.testing.assert_close(part.normal(image[1:3]), whole.normal(image)[1:3])
    torch.testing.assert_close(part.forward(image[1:3]), whole.forward(image)[1:3])
    torch.testing.assert_close(part.adjoint(hybrid[1:3]), whole.adjoint(hybrid)[1:3])


def test_frames_of_a_batch_cannot_be_selected():
    maps, mask, *_ = build(2, 3, 8, 6, False)
    with pytest.raises(DataError, match="without a batch axis"):
        SenseOperator(maps, mask[None]).select(slice(1))


def test_no_frames():
    maps, mask, image, hybrid = build(3, 2, 8, 6, False)
    operator = SenseOperator(maps, mask[:0])
    assert operator.normal(image[:0]).shape == (0, 8, 6)
    assert operator.forward(image[:0]).shape == (0, 2, 8, 6)
    assert operator.adjoint(hybrid[:0]).shape == (0, 8, 6)
    per_frame = SenseOperator(maps[None][:0], mask[:0])
    assert per_frame.normal(image[:0]).shape == (0, 8, 6)


def test_any_order_of_memory():
    maps, mask, image, hybrid = build(3, 4, 9, 5, False)
    operator = SenseOperator(maps, mask)
    strided = SenseOperator(maps.mT.contiguous().mT, mask.T.contiguous().T)
    other = torch.stack((image, image), -1)[..., 0]
    backwards = hybrid.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    torch.testing.assert_close(strided.normal(other), operator.normal(image))
    torch.testing.assert_close(strided.forward(image.conj()), operator.forward(image.conj().resolve_conj()))
    torch.testing.assert_close(strided.adjoint(backwards), operator.adjoint(hybrid))


def test_inputs_are_not_changed():
    maps, mask, image, hybrid = build(3, 4, 9, 5, False)
    copies = [array.clone() for array in (maps, mask, image, hybrid)]
    operator = SenseOperator(maps, mask)
    operator.normal(image.mT.contiguous().mT)
    operator.normal(image)
    operator.forward(image)
    operator.adjoint(hybrid)
    for array, copy in zip((maps, mask, image, hybrid), copies, strict=True):
        assert torch.equal(array, copy)


def test_excluded_lines_may_hold_anything():
    maps, mask, _, hybrid = build(3, 4, 9, 5, False)
    expected = SenseOperator(maps, mask).adjoint(hybrid)
    hybrid.masked_fill_(~mask[:, None, :, None], torch.nan)
    assert torch.equal(SenseOperator(maps, mask).adjoint(hybrid), expected)


@pytest.mark.parametrize("folds", [pytest.param(False, marks=pytest.mark.slow), True])
def test_double_precision_and_derivatives(folds):
    maps, mask, image, hybrid = (array.to(torch.complex128) for array in build(2, 4, 6, 3, False))
    mask = periodic_mask(2, 6, 3, interleaved=True) if folds else mask.real.bool()
    operator = SenseOperator(maps, mask)
    image.requires_grad_()
    hybrid.requires_grad_()
    assert torch.autograd.gradcheck(operator.normal, image, check_batched_grad=False)
    assert torch.autograd.gradcheck(operator.forward, image)
    assert torch.autograd.gradcheck(operator.adjoint, hybrid)
    assert torch.autograd.gradgradcheck(operator.normal, image)


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_plane_operator_with_a_mask_of_lines_is_the_hybrid_one(per_frame, batched):
    maps, mask, image, hybrid = build(4, 3, 8, 7, per_frame)
    if batched:
        maps = maps.reshape(2, 2, 3, 8, 7) if per_frame else maps
        mask, image, hybrid = mask.reshape(2, 2, 8), image.reshape(2, 2, 8, 7), hybrid.reshape(2, 2, 3, 8, 7)
    plane = PlaneSenseOperator(maps, mask[..., None].expand(*mask.shape, 7))
    lines = SenseOperator(maps, mask)
    torch.testing.assert_close(ifft(plane.forward(image), (-1,)), lines.forward(image), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plane.adjoint(fft(hybrid, (-1,))), lines.adjoint(hybrid), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plane.normal(image), lines.normal(image), rtol=1e-4, atol=1e-5)


def test_plane_operator_one_set_of_maps_per_batch_entry():
    maps = torch.randn(2, 3, 6, 5, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 4, 6, 5, dtype=torch.bool)
    image = torch.ones(2, 4, 6, 5, dtype=torch.complex64)
    expected = fft(maps[:, None] * image[:, :, None], (-2, -1))
    torch.testing.assert_close(PlaneSenseOperator(maps, mask).forward(image), expected)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(0, (1, 1, 1)), (39, (3, 1, 1)), (100, (7, 1, 1)), (150, (7, 2, 1)), (280, (7, 4, 1)), (10**6, (7, 4, 3))],
)
def test_portions_fill_the_first_axis_first(budget, expected):
    assert sense.portion_sizes(budget, 10, (7, 4, 3)) == expected


def test_the_readout_transform_cancels():
    """Encoding in (ky, kx), taken back along kx, is the hybrid encoding."""
    maps, mask, image, _ = build(2, 3, 8, 7, False)
    kspace = fft(maps * image[:, None], (-2, -1)) * mask[:, None, :, None]
    torch.testing.assert_close(ifft(kspace, (-1,)), SenseOperator(maps, mask).forward(image), rtol=1e-4, atol=1e-5)


def test_norm_at_most_one_with_unit_maps():
    maps, mask, image, _ = build(3, 4, 12, 5, False)
    maps = maps / maps.abs().square().sum(0).sqrt()
    assert SenseOperator(maps, mask).forward(image).norm() <= image.norm()


@pytest.mark.parametrize("maps_shape", [(2, 9, 4), (3, 2, 8, 4), (8, 4)])
def test_axes_that_disagree_are_refused(maps_shape):
    with pytest.raises(DataError, match="maps must be"):
        SenseOperator(torch.ones(maps_shape, dtype=torch.complex64), torch.ones(2, 8, dtype=torch.bool))


def test_arrays_that_do_not_fit_are_refused():
    maps, mask, image, hybrid = build(3, 4, 8, 5, False)
    operator = SenseOperator(maps, mask)
    with pytest.raises(DataError, match=r"image must be .*3, 8, 5"):
        operator.normal(image[:2])
    with pytest.raises(DataError, match=r"image must be .*complex64"):
        operator.normal(image.to(torch.complex128))
    with pytest.raises(DataError, match=r"hybrid data must be .*3, 4, 8, 5"):
        operator.adjoint(hybrid[:, :2])
    with pytest.raises(DataError, match="maps must be complex"):
        SenseOperator(maps.real, mask)
    with pytest.raises(DataError, match="cannot be differentiated in the coil maps"):
        SenseOperator(maps.requires_grad_(), mask)
