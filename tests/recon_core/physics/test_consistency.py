import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon_core.errors import DataError, ModelError
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft, ifft
from recon_core.physics.sense import SenseOperator

# --- the definitions, with 2-D transforms and all shifts, as the papers write them ----------------------------------


def expand(maps, image):
    return fft(maps * image[..., None, :, :], (-2, -1))


def combine(maps, kspace):
    return (maps.conj() * ifft(kspace, (-2, -1))).sum(-3)


def plain_hard(maps, mask, kspace, image):
    return combine(maps, torch.where(mask, kspace, expand(maps, image)))


def plain_weighted(maps, mask, kspace, image, weight):
    predicted = expand(maps, image)
    weight = torch.as_tensor(weight)[..., None, :, :] if torch.is_tensor(weight) and weight.ndim > 1 else weight
    return combine(maps, torch.where(mask, (predicted + weight * kspace) / (1 + weight), predicted))


def plain_gradient(maps, mask, kspace, image, step):
    return image - step * combine(maps, torch.where(mask, expand(maps, image) - kspace, 0))


def plain_solution(maps, mask, kspace, image, weight):
    """By dense linear algebra, frame by frame; maps and mask have the frame axis."""
    n_y, n_x = image.shape[-2:]
    unit = torch.eye(n_y * n_x, dtype=image.dtype).reshape(-1, n_y, n_x)
    solutions = []
    for frame, z in enumerate(image):
        columns = (expand(maps[frame], unit) * mask[frame]).flatten(1)
        matrix = columns.conj() @ columns.mT + weight * unit.flatten(1)
        right = columns.conj() @ torch.where(mask[frame], kspace[frame], 0).flatten() + weight * z.flatten()
        solutions.append(torch.linalg.solve(matrix, right).reshape(n_y, n_x))
    return torch.stack(solutions)


def make(
    n_frames=3, n_coils=4, n_y=9, n_x=5, *, batch=None, maps_axes="shared", points=False, regular=False, seed=0,
    dtype=torch.complex128,
):  # fmt: skip
    """Maps, mask, k-space and image; unit-norm maps."""
    generator = torch.Generator().manual_seed(seed)
    lead = (n_frames,) if batch is None else (batch, n_frames)
    maps_lead = {"shared": (), "batch": lead[:1], "frame": lead}[maps_axes]
    maps = torch.randn(*maps_lead, n_coils, n_y, n_x, dtype=dtype, generator=generator)
    maps = maps / torch.linalg.vector_norm(maps, dim=-3, keepdim=True)
    mask = torch.rand(*lead, n_y, *((n_x,) if points else ()), generator=generator) < 0.4
    if regular:
        step = next(step for step in (2, 3, 5, 7, n_y) if n_y % step == 0)
        line = torch.arange(n_y) - torch.arange(n_frames)[:, None]
        mask = (line % step == 0).expand(*lead, n_y)
    kspace = torch.randn(*lead, n_coils, n_y, n_x, dtype=dtype, generator=generator)
    image = torch.randn(*lead, n_y, n_x, dtype=dtype, generator=generator)
    return maps, mask, kspace, image


def prepare(maps, mask, kspace, **settings):
    """The tested object, and maps and mask with all axes for the definitions."""
    points = mask.ndim == kspace.ndim - 1
    tested = DataConsistency(maps, mask, kspace if points else ifft(kspace, (-1,)), **settings)
    if maps.ndim == 4 and kspace.ndim == 5:
        maps = maps[:, None]
    full_mask = mask if points else mask[..., None].expand(*mask.shape, kspace.shape[-1])
    return tested, maps, full_mask[..., None, :, :]


@st.composite
def cases(draw):
    batch = draw(st.sampled_from([None, 1, 2]))
    points = draw(st.booleans())
    return {
        "n_frames": draw(st.sampled_from([1, 2, 5])),
        "n_coils": draw(st.sampled_from([1, 3, 30])),
        "n_y": draw(st.integers(1, 12)),
        "n_x": draw(st.integers(1, 7)),
        "batch": batch,
        "maps_axes": draw(st.sampled_from(["shared", "frame"] + (["batch"] if batch else []))),
        "points": points,
        "regular": not points and draw(st.booleans()),
        "seed": draw(st.integers(0, 100)),
    }


@settings(max_examples=40, derandomize=True)
@given(cases(), st.sampled_from([1, 3000, None]), st.floats(0, 50))
def test_every_form_is_its_definition(case, workspace_bytes, weight):
    maps, mask, kspace, image = make(**case)
    tested, full_maps, full_mask = prepare(maps, mask, kspace, workspace_bytes=workspace_bytes)
    same = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(tested.hard(image), plain_hard(full_maps, full_mask, kspace, image), **same)
    expected = plain_weighted(full_maps, full_mask, kspace, image, weight)
    torch.testing.assert_close(tested.weighted(image, weight), expected, **same)
    expected = plain_gradient(full_maps, full_mask, kspace, image, weight)
    torch.testing.assert_close(tested.gradient(image, weight), expected, **same)


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("maps_axes", ["shared", "frame"])
@pytest.mark.parametrize(("n_y", "n_x"), [(6, 5), (7, 4)])
def test_solution_is_that_of_the_linear_system(points, maps_axes, n_y, n_x):
    maps, mask, kspace, image = make(n_y=n_y, n_x=n_x, points=points, maps_axes=maps_axes)
    tested, full_maps, full_mask = prepare(maps, mask, kspace)
    full_maps = full_maps.expand(3, 4, n_y, n_x)
    expected = plain_solution(full_maps, full_mask, kspace, image, 0.3)
    torch.testing.assert_close(tested.solve(image, 0.3, 60, tolerance=1e-12), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        tested.solve(image, 0.3, 200, tolerance=1e-12, joint=True), expected, rtol=1e-8, atol=1e-8
    )


def test_joint_steps_are_those_of_one_vector():
    """The textbook iteration on all frames as one vector, from z, three steps."""
    maps, mask, kspace, image = make()
    tested, full_maps, full_mask = prepare(maps, mask, kspace)

    def apply(x):
        return combine(full_maps, expand(full_maps, x) * full_mask) + 0.7 * x

    x = image.clone()
    r = combine(full_maps, kspace * full_mask) + 0.7 * image - apply(x)
    p = r
    for _ in range(3):
        q = apply(p)
        alpha = r.norm() ** 2 / (p.conj() * q).sum().real
        x, previous, r = x + alpha * p, r, r - alpha * q
        p = r + (r.norm() / previous.norm()) ** 2 * p
    torch.testing.assert_close(tested.solve(image, 0.7, 3, joint=True), x)
    assert (tested.solve(image, 0.7, 3) - x).norm() > 1e-4 * x.norm()


def test_joint_steps_keep_entries_of_a_batch_apart():
    maps, mask, kspace, image = make(batch=2)
    kspace[1] *= 100
    tested, *_ = prepare(maps, mask, kspace)
    together = tested.solve(image, 0.7, 3, joint=True)
    for i in range(2):
        alone = prepare(maps, mask[i], kspace[i])[0].solve(image[i], 0.7, 3, joint=True)
        torch.testing.assert_close(together[i], alone)


def test_constant_steps_are_those_of_a_fixed_polynomial():
    """The same result; its derivative is that of the textbook iteration with numbers for step sizes."""
    maps, mask, kspace, image = make()
    tested, full_maps, full_mask = prepare(maps, mask, kspace)
    weight = torch.tensor(0.7, dtype=torch.float64)

    def apply(x, weight):
        return combine(full_maps, expand(full_maps, x) * full_mask) + weight * x

    def textbook(x, weight):
        r = p = combine(full_maps, kspace * full_mask) + weight * x - apply(x, weight)
        for _ in range(3):
            q = apply(p, weight)
            alpha = (r.norm() ** 2 / (p.conj() * q).sum().real).item()
            x, previous, r = x + alpha * p, r, r - alpha * q
            p = r + (r.norm() / previous.norm()).item() ** 2 * p
        return x

    def differentiate(function):
        inputs = image.clone().requires_grad_(), weight.clone().requires_grad_()
        result = function(*inputs)
        (result.abs() ** 2).sum().backward()
        return result.detach(), inputs[0].grad, inputs[1].grad

    expected = differentiate(textbook)
    constant = differentiate(lambda x, w: tested.solve(x, w, 3, joint=True, constant_steps=True))
    torch.testing.assert_close(constant, expected)
    whole = differentiate(lambda x, w: tested.solve(x, w, 3, joint=True))
    torch.testing.assert_close(whole[0], expected[0])
    assert (whole[1] - expected[1]).norm() > 1e-3 * expected[1].norm()


def test_a_solved_system_stays_solved():
    """Steps after the residual is zero do nothing, and give no NaN."""
    maps, mask, kspace, image = make(n_frames=2, n_coils=1, n_y=4, n_x=1)
    tested, *_ = prepare(torch.ones_like(maps), torch.ones_like(mask), kspace)
    torch.testing.assert_close(tested.solve(image, 0.5, 40), tested.solve(image, 0.5, 3))


def test_single_precision():
    maps, mask, kspace, image = make(4, 10, 24, 20, dtype=torch.complex64)
    tested, full_maps, full_mask = prepare(maps, mask, kspace)
    expected = plain_hard(full_maps, full_mask, kspace, image)
    assert tested.hard(image).dtype == torch.complex64
    assert (tested.hard(image) - expected).norm() < 1e-6 * expected.norm()


def test_one_coil_hard_replaces_exactly():
    maps, mask, kspace, image = make(n_coils=1)
    maps = torch.ones_like(maps)
    tested, _, full_mask = prepare(maps, mask, kspace)
    result = fft(tested.hard(image), (-2, -1))[:, None]
    torch.testing.assert_close(result, torch.where(full_mask, kspace, fft(image, (-2, -1))[:, None]))


def test_consistent_image_stays():
    maps, mask, _, image = make()
    tested = DataConsistency(maps, mask, SenseOperator(maps, mask).forward(image))
    for result in (
        tested.hard(image),
        tested.weighted(image, 2.0),
        tested.gradient(image),
        tested.solve(image, 0.1, 5),
    ):
        torch.testing.assert_close(result, image)


def test_solve_starts_from_the_image():
    maps, mask, kspace, image = make()
    tested, *_ = prepare(maps, mask, kspace)
    torch.testing.assert_close(tested.solve(image, 0.1, 0), image, rtol=0, atol=0)


@pytest.mark.parametrize("batch", [None, 2])
def test_weights_per_frame(batch):
    maps, mask, kspace, image = make(batch=batch)
    tested, full_maps, full_mask = prepare(maps, mask, kspace)
    weight = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)[:, None, None]
    expected = plain_weighted(full_maps, full_mask, kspace, image, weight)
    torch.testing.assert_close(tested.weighted(image, weight), expected)
    together = tested.solve(image, 0.1 + weight, 4)
    for frame, value in enumerate(weight.flatten()):
        alone = tested.solve(image, 0.1 + value, 4)
        torch.testing.assert_close(together[..., frame, :, :], alone[..., frame, :, :])


@pytest.mark.parametrize("form", ["hard", "weighted", "gradient", "solve", "joint"])
@pytest.mark.parametrize(("points", "regular"), [(False, False), (False, True), (True, False)])
def test_derivatives(form, points, regular):
    maps, mask, kspace, image = make(2, 2, 4, 2, points=points, regular=regular)
    tested, *_ = prepare(maps, mask, kspace)
    image.requires_grad_()
    weight = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    function = {
        "hard": lambda x, _: tested.hard(x),
        "weighted": tested.weighted,
        "gradient": tested.gradient,
        "solve": lambda x, w: tested.solve(x, w, 3),
        "joint": lambda x, w: tested.solve(x, w, 3, joint=True),
    }[form]
    assert torch.autograd.gradcheck(function, (image, weight))


def test_derivatives_are_those_of_the_plain_form():
    maps, mask, kspace, image = make(4, 5, 16, 12)
    tested, full_maps, full_mask = prepare(maps, mask, kspace)
    gradients = []
    for function in (tested.weighted, lambda x, v: plain_weighted(full_maps, full_mask, kspace, x, v)):
        x = image.clone().requires_grad_()
        v = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        function(x, v).abs().square().sum().backward()
        gradients.append((x.grad, v.grad))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("points", [False, True])
def test_any_order_of_memory(points):
    maps, mask, kspace, image = make(points=points)
    tested, *_ = prepare(maps, mask, kspace)
    measured = kspace if points else ifft(kspace, (-1,))
    strided = DataConsistency(
        maps.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        torch.stack((mask, ~mask), -1)[..., 0],
        measured.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0),
    )
    other = image.mT.contiguous().mT
    torch.testing.assert_close(strided.hard(other), tested.hard(image))
    torch.testing.assert_close(strided.solve(image.flip(0).flip(0), 0.1, 3), tested.solve(image, 0.1, 3))


def test_inputs_are_not_changed():
    inputs = make(regular=True)
    copies = [array.clone() for array in inputs]
    maps, mask, kspace, image = inputs
    tested = DataConsistency(maps, mask, kspace)
    for _ in range(2):
        tested.hard(image)
        tested.weighted(image, 1.0)
        tested.gradient(image)
        tested.solve(image, 0.1, 2)
    for array, copy in zip(inputs, copies, strict=True):
        assert torch.equal(array, copy)


@pytest.mark.parametrize("points", [False, True])
def test_a_frame_without_lines_keeps_its_image(points):
    maps, mask, kspace, image = make(points=points)
    mask[1] = False
    tested, *_ = prepare(maps, mask, kspace)
    for result in (
        tested.hard(image),
        tested.weighted(image, 1.0),
        tested.gradient(image),
        tested.solve(image, 0.1, 4),
    ):
        torch.testing.assert_close(result[1], image[1])


def test_no_frames():
    maps, mask, kspace, image = make()
    tested = DataConsistency(maps, mask[:0], kspace[:0])
    assert tested.hard(image[:0]).shape == (0, 9, 5)
    assert tested.solve(image[:0], 0.1, 2).shape == (0, 9, 5)


@pytest.mark.parametrize("points", [False, True])
def test_excluded_samples_may_hold_anything(points):
    maps, mask, kspace, image = make(points=points)
    tested, _, full_mask = prepare(maps, mask, kspace)
    measured = (kspace if points else ifft(kspace, (-1,))).masked_fill(~full_mask, torch.nan)
    torch.testing.assert_close(DataConsistency(maps, mask, measured).hard(image), tested.hard(image))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_measured_samples_must_be_finite(bad):
    maps, mask, kspace, _ = make()
    mask[1, 4] = True
    kspace[1, 2, 4, 0] = bad
    with pytest.raises(DataError, match="not finite"):
        DataConsistency(maps, mask, kspace)


def test_an_image_that_is_not_finite_spoils_its_frame_only():
    maps, mask, kspace, image = make()
    tested, *_ = prepare(maps, mask, kspace)
    spoilt = image.clone()
    spoilt[1, 2, 2] = torch.nan
    for form in (tested.hard, tested.gradient, lambda x: tested.solve(x, 0.1, 3)):
        result, expected = form(spoilt), form(image)
        assert result[1].isnan().any()
        torch.testing.assert_close(result[::2], expected[::2])


@pytest.mark.parametrize("maps_axes", ["shared", "batch", "frame"])
def test_maps_that_are_not_of_unit_norm(maps_axes):
    """The combination is not divided by their intensity, which can be done outside."""
    maps, mask, kspace, image = make(batch=2, maps_axes=maps_axes)
    maps = maps * torch.linspace(0, 2, 5, dtype=torch.float64)
    tested, full_maps, full_mask = prepare(maps, mask, kspace)
    result = tested.hard(image)
    torch.testing.assert_close(result, plain_hard(full_maps, full_mask, kspace, image))
    assert (result[..., 0] == 0).all()
    torch.testing.assert_close(
        tested.intensity.expand_as(image.real), full_maps.abs().square().sum(-3).expand_as(image.real)
    )


def test_result_is_independent_of_the_implementation_switch():
    maps, mask, kspace, image = make()
    results = [prepare(maps, mask, kspace, implementation=name)[0].hard(image) for name in ("auto", "torch")]
    assert torch.equal(*results)
    with pytest.raises(ModelError, match="needs a GPU"):
        prepare(maps, mask, kspace, implementation="cupy")


def test_axes_that_disagree_are_refused():
    maps, mask, kspace, _ = make()
    for bad in (
        (maps, mask[0], kspace),
        (maps[:2], mask, kspace),
        (maps, mask[:2], kspace),
        (maps, mask, kspace[..., :3]),
        (maps, mask[:, :4], kspace),
        (maps[0], mask, kspace),
        (maps, mask, kspace.to(torch.complex64)),
        (maps, mask[None].expand(2, -1, -1), kspace[None]),
    ):
        with pytest.raises(DataError, match="must be"):
            DataConsistency(*bad)
    with pytest.raises(DataError, match="cannot be differentiated in the measured data"):
        DataConsistency(maps, mask, kspace.requires_grad_())
