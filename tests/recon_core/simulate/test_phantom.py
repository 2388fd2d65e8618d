import numpy as np
import pytest

from recon_core.errors import SettingsError
from recon_core.simulate.phantom import BLOOD_SIGNAL, BeatingThorax, beating_thorax, pixel_positions, volume_curve

MATRIX = (96, 112)
FOV = (300.0, 350.0)


def blood_area(image, fov=FOV):
    """Area in mm^2 of bright pixels around the left ventricle."""
    ny, nx = image.shape
    y, x = pixel_positions(ny, fov[0]), pixel_positions(nx, fov[1])
    near = (x[None, :] - 28.0) ** 2 + (y[:, None] + 14.0) ** 2 < 27.0**2
    return float(((np.abs(image) > 0.6 * BLOOD_SIGNAL) & near).sum()) * fov[0] * fov[1] / (ny * nx)


def test_volume_curve_is_periodic_and_spans_the_ejection_fraction():
    times = np.linspace(0.0, 1.0, 501)
    volume = volume_curve(times, 0.55)
    np.testing.assert_allclose(volume_curve(times + 3.0, 0.55), volume, atol=1e-9)
    assert volume[0] == volume[-1] == 1.0
    assert volume.min() == pytest.approx(0.45)
    assert 0.33 < times[volume.argmin()] < 0.46
    assert np.abs(np.diff(volume)).max() < 0.01  # no jumps


def test_atrial_kick_completes_the_filling():
    volume = volume_curve([0.70, 0.80, 0.97])
    assert volume[0] < volume[1] < volume[2] == pytest.approx(1.0)


def test_frames_are_deterministic_and_depend_on_the_seed():
    first = beating_thorax([0.0, 0.3], MATRIX, FOV, seed=4)
    assert first.shape == (2, *MATRIX)
    assert first.dtype == np.complex64
    np.testing.assert_array_equal(first, beating_thorax([0.0, 0.3], MATRIX, FOV, seed=4))
    assert np.abs(first - beating_thorax([0.0, 0.3], MATRIX, FOV, seed=5)).max() > 0.05


def test_left_ventricle_contracts_in_systole_and_fills_again():
    diastole, systole, late = (blood_area(frame) for frame in beating_thorax([0.0, 0.4, 0.99], MATRIX, FOV))
    assert 1600 < diastole < 2400  # mm^2, a circle of about 26 mm radius less the papillary muscles
    assert systole < 0.6 * diastole
    assert late == pytest.approx(diastole, rel=0.02)


def test_only_the_heart_and_its_surroundings_move():
    frames = beating_thorax([0.0, 0.4], MATRIX, FOV)
    change = np.abs(np.abs(frames[1]) - np.abs(frames[0]))
    y, x = pixel_positions(MATRIX[0], FOV[0]), pixel_positions(MATRIX[1], FOV[1])
    near = (np.abs(x[None, :] - 10.0) < 90.0) & (np.abs(y[:, None] + 5.0) < 80.0)
    assert change[near].max() > 0.4
    assert change[~near].max() < 1e-4


def test_grid_does_not_change_the_object():
    coarse = beating_thorax([0.2], (150, 175), FOV)[0]
    fine = beating_thorax([0.2], (300, 350), FOV)[0]
    # pixel n // 2 lies at 0 mm on both grids
    same_points = fine[0::2, 1::2]
    difference = np.abs(same_points - coarse)
    assert np.median(difference) < 0.01
    assert np.linalg.norm(difference) < 0.2 * np.linalg.norm(coarse)


def test_slices_shrink_towards_the_apex():
    areas = [blood_area(beating_thorax([0.0], MATRIX, FOV, slice_offset_mm=z)[0]) for z in (20.0, 0.0, -25.0, -40.0)]
    assert areas == sorted(areas, reverse=True)
    assert areas[-1] < 0.7 * areas[0]


def test_respiration_moves_heart_and_liver_down():
    pixel = FOV[0] / MATRIX[0]
    still, moved = np.abs(beating_thorax([0.0, 0.0], MATRIX, FOV, respiration_mm=[0.0, 4 * pixel]))
    heart = (slice(36, 52), slice(52, 76))
    liver = (slice(54, 64), slice(25, 40))
    for rows, columns in (heart, liver):
        followed = moved[rows.start + 4 : rows.stop + 4, columns] - still[rows, columns]
        stayed = moved[rows, columns] - still[rows, columns]
        assert np.linalg.norm(followed) < 0.5 * np.linalg.norm(stayed)
    np.testing.assert_allclose(moved[:14], still[:14], atol=1e-4)  # the chest wall stays


def test_fat_is_opposed_to_water():
    image = BeatingThorax(pixel_positions(300, 300.0), pixel_positions(360, 360.0)).frame(0.0)
    fat, muscle = image[150, 38], image[150, 49]  # left chest wall
    assert np.abs(fat) > 0.5
    assert np.abs(muscle) > 0.15
    assert np.abs(np.angle(fat * muscle.conj())) > 2.8
    assert np.abs(image[150, 38:50]).min() < 0.1  # the black line between them


@pytest.mark.parametrize(
    ("matrix", "fov", "breath"), [((0, 8), FOV, 0.0), ((8, 8), (0.0, 1.0), 0.0), ((8, 8), FOV, [1.0, 2.0, 3.0])]
)
def test_refuses_impossible_requests(matrix, fov, breath):
    with pytest.raises(SettingsError):
        beating_thorax([0.0, 0.5], matrix, fov, respiration_mm=breath)


def test_refuses_an_impossible_ejection_fraction():
    with pytest.raises(SettingsError, match="ejection_fraction"):
        volume_curve(0.0, 1.0)
