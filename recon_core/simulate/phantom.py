"""A beating heart in a breathing thorax, drawn from smooth outlines at any matrix size and field of view.

The picture is a short-axis bSSFP cine: bright blood, dark-grey myocardium, bright fat with the opposite sign of water
(bSSFP at TE = TR/2), which gives the black line between fat and water by partial volume just as it arises on a scanner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recon_core.errors import SettingsError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# Cycle fraction and share of the stroke volume still (or again) in the ventricle; flat between equal neighbours:
# isovolumetric contraction, ejection, isovolumetric relaxation, rapid filling, diastasis, atrial kick, end diastole.
_VOLUME_KNOTS = np.array(
    [(0.0, 1.0), (0.05, 1.0), (0.38, 0.0), (0.45, 0.0), (0.63, 0.74), (0.82, 0.80), (0.96, 1.0), (1.0, 1.0)]
)

# Signal relative to blood. Fat is negative: opposed to water at the echo time of bSSFP.
BLOOD_SIGNAL = 0.86
_MYOCARDIUM = 0.31
_MUSCLE = 0.21
_FAT = -0.74
_LUNG = 0.025
_LIVER = 0.33
_SPLEEN = 0.42
_MARROW = -0.34
_CORTEX = 0.04
_CONNECTIVE = -0.52
_SKIN = 0.3

_LV_ENDOCARDIUM = 26.5  # mm, end-diastolic radius at mid-ventricle
_LV_WALL = 9.0  # mm, end diastole
_LV_LENGTH = 92.0  # mm, base to apex
_LV_BASE = 43.0  # mm, above mid-ventricle
_HEART = (28.0, -14.0)  # mm, centre of the left ventricle at mid-ventricle
_LUNG_SIDE = (58.0, 6.0)  # mm, the lateral wall, where the field is off most
_EDGE = 0.9  # mm, softest edge: a tissue border averaged over an 8 mm slice


def volume_curve(times: ArrayLike, ejection_fraction: float = 0.6) -> NDArray[np.float64]:
    """Volume of the left ventricle over the cardiac cycle.

    Parameters
    ----------
    times
        Fraction of the RR interval, R wave at 0; any real number, the curve is periodic.
    ejection_fraction
        Stroke volume divided by end-diastolic volume, between 0 and 1.

    Returns
    -------
    NDArray[np.float64]
        Volume relative to end diastole, between ``1 - ejection_fraction`` and 1, shape of `times`.
    """
    if not 0.0 <= ejection_fraction < 1.0:
        raise SettingsError(f"ejection_fraction must be in [0, 1), got {ejection_fraction}")
    phase = np.mod(np.asarray(times, dtype=np.float64), 1.0)
    knots, values = _VOLUME_KNOTS.T
    left = np.clip(np.searchsorted(knots, phase, side="right") - 1, 0, len(knots) - 2)
    progress = (phase - knots[left]) / (knots[left + 1] - knots[left])
    eased = progress * progress * (3.0 - 2.0 * progress)
    stroke = values[left] + (values[left + 1] - values[left]) * eased
    return np.asarray(1.0 - ejection_fraction * (1.0 - stroke))


def pixel_positions(count: int, fov_mm: float) -> NDArray[np.float32]:
    """Give the coordinate of every pixel along one axis.

    Parameters
    ----------
    count
        Number of pixels.
    fov_mm
        Length of the axis in mm.

    Returns
    -------
    NDArray[np.float32]
        ``(count,)`` mm; pixel ``count // 2`` lies at 0, where the centred FFT puts it.
    """
    return ((np.arange(count) - count // 2) * (fov_mm / count)).astype(np.float32)


def field_inhomogeneity(y_mm: NDArray[np.float32], x_mm: NDArray[np.float32]) -> NDArray[np.float64]:
    """Where the main field is off, ``(y, x)`` between 0 and 1: most at the side of the heart next to the lung."""
    distance = (x_mm - _LUNG_SIDE[0]) ** 2 + (y_mm[:, None] - _LUNG_SIDE[1]) ** 2
    return np.asarray(np.exp(distance / (-2.0 * 32.0**2)), np.float64)


@dataclass(frozen=True)
class _Outline:
    """An ellipse, rotated and with a wavy rim; ``waves`` are (harmonic, relative amplitude, phase)."""

    x: float
    y: float
    a: float
    b: float
    angle: float = 0.0
    waves: tuple[tuple[int, float, float], ...] = ()

    def grown(self, mm: float) -> _Outline:
        return replace(self, a=max(self.a + mm, 0.1), b=max(self.b + mm, 0.1))

    def moved(self, x: float, y: float) -> _Outline:
        return replace(self, x=self.x + x, y=self.y + y)


class _Canvas:
    """A real image on a grid of millimetres, painted layer over layer with anti-aliased edges."""

    def __init__(self, y: NDArray[np.float32], x: NDArray[np.float32]) -> None:
        self.y = y
        self.x = x
        self.image = np.zeros((len(y), len(x)), np.float32)
        pixel = max(float(y[1] - y[0]), float(x[1] - x[0])) if min(len(y), len(x)) > 1 else 1.0
        self.edge = max(pixel, _EDGE)

    def copy(self) -> _Canvas:
        other = object.__new__(_Canvas)
        other.__dict__.update(self.__dict__)
        other.image = self.image.copy()
        return other

    def paint(
        self,
        outline: _Outline,
        value: float,
        texture: NDArray[np.float32] | None = None,
        edge: float = 0.0,
        opacity: float = 1.0,
    ) -> None:
        """Cover the inside of `outline` with `value`, times `texture` (of the whole grid) where given."""
        edge = max(edge, self.edge)
        reach = max(outline.a, outline.b) * (1.0 + sum(abs(wave[1]) for wave in outline.waves)) + 2.0 * edge
        rows = slice(*self.y.searchsorted((outline.y - reach, outline.y + reach)).tolist())
        columns = slice(*self.x.searchsorted((outline.x - reach, outline.x + reach)).tolist())
        if rows.start == rows.stop or columns.start == columns.stop:
            return
        a, b = outline.a, outline.b
        cosine, sine = math.cos(outline.angle), math.sin(outline.angle)
        dy = self.y[rows] - np.float32(outline.y)
        dx = self.x[columns] - np.float32(outline.x)
        u = np.add.outer(np.float32(sine / a) * dy, np.float32(cosine / a) * dx)
        v = np.subtract.outer(np.float32(cosine / b) * dy, np.float32(sine / b) * dx)
        u2, v2 = u * u, v * v
        level = np.sqrt(u2 + v2)
        level += np.float32(1e-6)
        slope = np.sqrt(u2 * np.float32(1.0 / (a * a)) + v2 * np.float32(1.0 / (b * b)))
        slope /= level
        slope += np.float32(1e-6)
        cover = -level
        cover += np.float32(1.0)
        if outline.waves:
            theta = np.arctan2(v, u)
            for harmonic, amplitude, phase in outline.waves:
                cover += np.float32(amplitude) * np.cos(np.float32(harmonic) * theta + np.float32(phase))
        cover /= slope
        cover *= np.float32(1.0 / edge)
        cover += np.float32(0.5)
        np.maximum(cover, np.float32(0.0), out=cover)
        np.minimum(cover, np.float32(1.0), out=cover)
        if opacity < 1.0:
            cover *= np.float32(opacity)
        part = self.image[rows, columns]
        target = np.float32(value) if texture is None else np.float32(value) * texture[rows, columns]
        cover *= target - part
        part += cover


def _texture(
    rng: np.random.Generator, y: NDArray[np.float32], x: NDArray[np.float32], wavelengths: tuple[float, float]
) -> NDArray[np.float32]:
    """Smooth random field of unit variance, a sum of plane waves so that it is the same on every grid."""
    count = 40
    direction = rng.uniform(0.0, 2.0 * np.pi, count)
    wavenumber = 2.0 * np.pi / (wavelengths[0] * (wavelengths[1] / wavelengths[0]) ** rng.random(count))
    phase = rng.uniform(0.0, 2.0 * np.pi, count)
    along_y = np.exp(1j * (np.outer(y, wavenumber * np.sin(direction)) + phase)).astype(np.complex64)
    along_x = np.exp(1j * np.outer(wavenumber * np.cos(direction), x)).astype(np.complex64)
    return np.asarray((along_y @ along_x).real * np.float32(np.sqrt(2.0 / count)))


def _waves(
    rng: np.random.Generator, harmonics: tuple[int, ...], amplitude: float
) -> tuple[tuple[int, float, float], ...]:
    return tuple((k, float(amplitude * rng.uniform(0.4, 1.0)), float(rng.uniform(0.0, 2.0 * np.pi))) for k in harmonics)


class _Textures(NamedTuple):
    """Factors ``(y, x)`` that give each tissue of the thorax its grain."""

    fat: NDArray[np.float32]
    tissue: NDArray[np.float32]
    marrow: NDArray[np.float32]
    liver: NDArray[np.float32]


def _draw_thorax(canvas: _Canvas, slice_offset: float, breath: float, seed: int) -> None:
    """Paint everything that does not beat; `breath` is the downward shift of the organs in mm."""
    rng = np.random.default_rng([seed, 1])
    y, x = canvas.y, canvas.x
    textures = _Textures(
        fat=1.0 + 0.045 * _texture(rng, y, x, (6.0, 40.0)),
        tissue=1.0 + 0.09 * _texture(rng, y, x, (4.0, 24.0)),
        marrow=1.0 + 0.16 * _texture(rng, y, x, (4.0, 12.0)),
        liver=1.0 + 0.05 * _texture(rng, y, x, (3.0, 14.0)),
    )
    detail = np.random.default_rng([seed, 2, round(slice_offset * 10.0) + 100_000])
    cavity = _Outline(3.0, 0.0, 126.0, 81.0, 0.02, ((2, 0.01, 2.4), (3, 0.03, 1.5), (4, 0.032, 3.1)))
    _draw_chest_wall(canvas, rng, textures)
    canvas.paint(cavity.grown(1.8), _FAT, textures.fat, opacity=0.9)
    canvas.paint(cavity, _CONNECTIVE, textures.fat)
    _draw_back(canvas, rng, textures)
    _draw_lungs(canvas, detail, breath)
    _draw_abdomen(canvas, cavity, -0.25 * slice_offset - breath, (rng, detail), textures)
    _draw_spine(canvas, textures)


def _draw_chest_wall(canvas: _Canvas, rng: np.random.Generator, textures: _Textures) -> None:
    body = _Outline(2.0, 4.0, 160.0, 116.0, 0.02, ((2, 0.015, 2.2), (3, 0.02, 1.5), (4, 0.032, 3.1), (5, 0.006, 1.0)))
    canvas.paint(body, _SKIN)
    canvas.paint(body.grown(-1.8), _FAT, textures.fat)
    waves = ((2, 0.02, 2.0), (3, 0.035, 1.4), (4, 0.03, 3.3), (5, 0.012, 2.8), (7, 0.008, 0.5))
    canvas.paint(_Outline(4.0, 1.0, 145.0, 102.0, 0.04, waves), _MUSCLE, textures.tissue, edge=1.4)
    # fat planes between the layers of the chest wall
    plane = _Outline(4.0, 0.5, 137.0, 93.0, 0.04, ((3, 0.035, 1.4), (4, 0.03, 3.2), (5, 0.012, 2.8), (9, 0.01, 0.5)))
    canvas.paint(plane, _FAT, textures.fat, opacity=0.75)
    canvas.paint(plane.grown(-2.4), _MUSCLE, textures.tissue)
    # ribs: an oblique cut shows them as flat ovals in the chest wall, intercostal fat between them
    for angle in np.linspace(-2.75, 0.55, 11) + rng.uniform(-0.06, 0.06, 11):
        rib_x, rib_y = 3.0 + 134.0 * np.cos(angle), 1.0 + 86.0 * np.sin(angle)
        tangent = float(np.arctan2(86.0 * np.cos(angle), -134.0 * np.sin(angle)))
        rib = _Outline(
            float(rib_x), float(rib_y), float(rng.uniform(11.0, 18.0)), 5.4, tangent + rng.uniform(-0.15, 0.15)
        )
        canvas.paint(rib.grown(1.6), _FAT, textures.fat, opacity=0.5, edge=2.0)
        canvas.paint(rib, _CORTEX)
        canvas.paint(rib.grown(-1.9), _MARROW, textures.marrow)


def _draw_back(canvas: _Canvas, rng: np.random.Generator, textures: _Textures) -> None:
    """Paint the muscles along the spine and the spinous process."""
    for side in (-1.0, 1.0):
        waves = _waves(rng, (3, 4), 0.05)
        canvas.paint(_Outline(10.0 + side * 27.0, 97.0, 21.0, 12.5, side * 0.25, waves), _MUSCLE, textures.tissue)
        canvas.paint(_Outline(10.0 + side * 30.0, 96.0, 12.0, 0.9, side * 0.9), _FAT, textures.fat)
    canvas.paint(_Outline(10.0, 104.0, 4.0, 11.0), _CORTEX)
    canvas.paint(_Outline(10.0, 105.0, 2.2, 9.0), _MARROW, textures.marrow)


def _draw_lungs(canvas: _Canvas, detail: np.random.Generator, breath: float) -> None:
    """Paint the lungs: dark, with vessels that thin out away from the hilum."""
    deeper = 0.5 * max(breath, 0.0)  # the lungs follow the diaphragm
    left_lung = _Outline(
        72.0, -6.0 + deeper, 62.0, 72.0 + deeper, 0.1, ((2, 0.05, 2.6), (3, 0.06, 2.6), (5, 0.015, 0.3))
    )
    right_lung = _Outline(
        -68.0, -20.0 + deeper, 58.0, 60.0 + deeper, 0.2, ((2, 0.05, 0.2), (3, 0.06, 0.6), (5, 0.015, 1.3))
    )
    for lung, hilum, count in ((left_lung, (64.0, 14.0), 64), (right_lung, (-45.0, -2.0), 44)):
        canvas.paint(lung, _LUNG)
        for _ in range(count):
            away = float(detail.uniform(0.0, 1.0))
            direction = float(detail.uniform(-np.pi, np.pi))
            vessel_x = hilum[0] + away * 55.0 * np.cos(direction)
            vessel_y = hilum[1] + away * 60.0 * np.sin(direction)
            if np.hypot((vessel_x - lung.x) / lung.a, (vessel_y + deeper - lung.y) / (lung.b - deeper)) > 0.92:
                continue
            thick = float(detail.uniform(0.5, 2.3)) * (1.2 - away)
            canvas.paint(
                _Outline(
                    float(vessel_x), float(vessel_y) + deeper, thick * float(detail.uniform(1.0, 4.5)), thick, direction
                ),
                float(detail.uniform(0.12, 0.6)) * (1.1 - away),
            )


def _draw_abdomen(
    canvas: _Canvas,
    cavity: _Outline,
    rise: float,
    generators: tuple[np.random.Generator, np.random.Generator],
    textures: _Textures,
) -> None:
    """Paint the upper abdomen, which lies `rise` mm further up; the nearer to the apex, the more of it is seen."""
    rng, detail = generators
    fat, tissue, marrow, liver_texture = textures
    liver = _Outline(-66.0, 84.0 - rise, 84.0, 52.0, -0.12, ((2, 0.04, 1.0), (3, 0.05, 3.4), (5, 0.012, 0.4)))
    stomach = _Outline(74.0, 74.0 - rise, 33.0, 21.0, 0.3, ((2, 0.06, 0.3), (3, 0.05, 1.0), (5, 0.03, 2.0)))
    spleen = _Outline(112.0, 66.0 - rise, 17.0, 33.0, 0.35, ((2, 0.05, 0.3), (3, 0.05, 0.2)))
    inside = _Canvas(canvas.y, canvas.x)
    inside.paint(cavity.moved(0.0, 4.0), 1.0)
    organs = canvas.copy()
    organs.paint(stomach.moved(-28.0, 14.0).grown(6.0), _FAT, fat, edge=3.0)
    organs.paint(spleen.grown(3.0), _FAT, fat, edge=2.0)
    organs.paint(spleen, _SPLEEN, liver_texture)
    organs.paint(stomach.grown(2.8), _MUSCLE, tissue)
    organs.paint(stomach, 0.12, tissue)
    organs.paint(_Outline(70.0, 82.0 - rise, 24.0, 9.0, 0.3, _waves(rng, (2, 3, 5), 0.12)), 0.5, marrow, edge=2.5)
    organs.paint(liver.grown(1.6), _LUNG)
    organs.paint(liver, _LIVER, liver_texture)
    for _ in range(26):
        spot_x, spot_y = detail.uniform(-125.0, 0.0), detail.uniform(44.0, 112.0)
        if np.hypot((spot_x - liver.x) / liver.a, (spot_y - 84.0) / liver.b) < 0.82:
            thick = float(detail.uniform(0.9, 2.6))
            vein = _Outline(
                spot_x, spot_y - rise, thick * detail.uniform(1.0, 4.0), thick, float(detail.uniform(-1.2, 0.6))
            )
            organs.paint(vein, float(detail.uniform(0.45, 0.75)))
    organs.paint(_Outline(-22.0, 66.0 - rise, 11.0, 8.0, 0.2), 0.72)  # inferior vena cava
    canvas.image += inside.image * (organs.image - canvas.image)


def _draw_spine(canvas: _Canvas, textures: _Textures) -> None:
    """Paint a vertebra and the spinal canal."""
    canvas.paint(_Outline(10.0, 69.0, 23.0, 18.5, 0.0, ((2, 0.03, 0.0), (3, 0.04, 1.57))), _CORTEX)
    canvas.paint(_Outline(10.0, 69.0, 21.4, 16.9, 0.0, ((2, 0.03, 0.0), (3, 0.04, 1.57))), _MARROW, textures.marrow)
    canvas.paint(_Outline(10.0, 90.5, 10.5, 7.8), _CORTEX)
    canvas.paint(_Outline(10.0, 90.5, 9.0, 6.6), 0.88)
    canvas.paint(_Outline(10.0, 90.5, 4.6, 3.4), 0.42)


def _longitudinal_factor(slice_offset: float) -> float:
    """Radius of a half ellipsoid at this height, relative to mid-ventricle; 0 beyond the apex."""

    def radius(height: float) -> float:
        return float(np.sqrt(max(1.0 - max((_LV_BASE - height) / _LV_LENGTH, 0.0) ** 2, 0.0)))

    return radius(slice_offset) / radius(0.0)


class _HeartTextures(NamedTuple):
    """Factors ``(y, x)`` that give each tissue of the heart its grain."""

    muscle: NDArray[np.float32]
    blood: NDArray[np.float32]
    fat: NDArray[np.float32]


class _Heart:
    """Sizes and places of the chambers at one moment; `volume` is relative to end diastole."""

    def __init__(self, volume: float, slice_offset: float, breath: float) -> None:
        self.contraction = contraction = 1.0 - volume
        self.factor = factor = _longitudinal_factor(slice_offset)
        self.height = (slice_offset + _LV_LENGTH - _LV_BASE) / _LV_LENGTH  # 0 apex, 1 base
        self.twist = twist = contraction * np.deg2rad(18.0 - 28.0 * self.height)
        # The cavity follows the volume curve; the wall keeps its volume while the ventricle shortens, so it thickens.
        self.endocardium = _LV_ENDOCARDIUM * factor * volume**0.42
        wall = _LV_WALL * (0.75 + 0.25 * factor)
        shortening = 1.0 - 0.32 * contraction
        rest = _LV_ENDOCARDIUM * factor
        self.epicardium = float(np.sqrt(self.endocardium**2 + ((rest + wall) ** 2 - rest**2) / shortening))
        self.x = _HEART[0] - 1.5 * contraction + 0.10 * slice_offset
        self.y = _HEART[1] + 2.0 * contraction + 0.06 * slice_offset + breath
        self.waves = ((2, 0.03, 0.6 + 2.0 * twist), (3, 0.018, 1.0 + 3.0 * twist), (5, 0.006, 5.0 * twist))
        #: Size of the right ventricle relative to mid-ventricle; it ends above the apex.
        self.right = (
            float(np.clip(factor * 1.5 - 0.5, 0.0, 1.2)) * float(np.clip(self.height * 2.2 - 0.1, 0.0, 1.0)) ** 0.5
        )
        self.squeeze = 1.0 - 0.55 * contraction


def _draw_heart(
    canvas: _Canvas, time: float, volume: float, slice_offset: float, breath: float, textures: _HeartTextures
) -> None:
    """Paint the heart and the descending aorta at one moment; `volume` is relative to end diastole."""
    heart = _Heart(volume, slice_offset, breath)
    aorta = _Outline(39.0, 57.0, 11.0 + 0.8 * np.sin(np.pi * np.clip(time / 0.5, 0.0, 1.0)), 10.6, 0.4)
    canvas.paint(aorta.grown(1.3), 0.1)
    canvas.paint(aorta, BLOOD_SIGNAL * (1.0 - 0.12 * heart.contraction), textures.blood)
    if heart.factor < 0.2:
        return
    _draw_sac(canvas, heart, textures)
    if heart.right > 0.15:
        _draw_right_ventricle(canvas, heart, textures)
    _draw_left_ventricle(canvas, heart, textures)


def _draw_sac(canvas: _Canvas, heart: _Heart, textures: _HeartTextures) -> None:
    """Paint epicardial and pericardial fat: thick in the grooves, a thin film over the wall of the left ventricle."""
    x, y, epicardium, right = heart.x, heart.y, heart.epicardium, heart.right
    sac = _Outline(
        x - 14.0 * right,
        y + 2.5,
        epicardium + 3.0 + 13.0 * right,
        epicardium + 6.5,
        0.3,
        ((2, 0.02, 1.0), (3, 0.05, 2.2), (5, 0.012, 0.4)),
    )
    canvas.paint(sac.grown(1.4), 0.06, edge=1.6)
    canvas.paint(sac, _FAT, textures.fat)
    canvas.paint(
        _Outline(x + 1.5, y + 1.0, epicardium + 1.2, epicardium + 1.0, 0.5, heart.waves), 0.5 * _MUSCLE, edge=1.6
    )


def _draw_right_ventricle(canvas: _Canvas, heart: _Heart, textures: _HeartTextures) -> None:
    """Paint the right ventricle, the fat and vessels of its grooves, and its trabeculae."""
    x, y, epicardium, right = heart.x, heart.y, heart.epicardium, heart.right
    contraction, squeeze = heart.contraction, heart.squeeze
    rv_waves = ((2, 0.05, 0.6), (3, 0.07, 0.5 + 0.4 * contraction))
    rv_half_width = 30.0 * right * squeeze
    rv = _Outline(
        x - epicardium * 0.93 - 0.18 * rv_half_width,
        y + 3.0 - 4.0 * contraction,
        rv_half_width,
        40.0 * right * (1.0 - 0.22 * contraction),
        0.28,
        rv_waves,
    )
    rv_wall = 2.8 + 2.2 * contraction
    canvas.paint(rv.grown(rv_wall + 3.0), _FAT, textures.fat)
    for groove in (-2.05, 2.35):
        groove_x, groove_y = x + (epicardium + 2.0) * np.cos(groove), y + (epicardium + 2.0) * np.sin(groove)
        canvas.paint(_Outline(float(groove_x), float(groove_y), 9.0, 6.0, groove + 1.2), _FAT, textures.fat, edge=2.0)
        canvas.paint(_Outline(float(groove_x) - 3.0, float(groove_y), 1.5, 1.5), BLOOD_SIGNAL)
    canvas.paint(rv.grown(rv_wall), _MYOCARDIUM * 1.1, textures.muscle, edge=1.6)
    canvas.paint(rv, BLOOD_SIGNAL * 0.93, textures.blood, edge=1.8)
    for along, across, size in (
        (-0.55, -0.72, 2.6),
        (-0.05, -0.8, 2.2),
        (0.45, -0.7, 2.9),
        (0.75, -0.3, 2.2),
        (0.2, -0.25, 1.8),
    ):
        trabecula = _Outline(
            rv.x + across * rv.a * 0.95, rv.y + along * rv.b * 0.8, size * 2.0 * squeeze**0.5, size, 0.5 - along
        )
        canvas.paint(trabecula, _MYOCARDIUM * 1.4, edge=3.0, opacity=0.5)


def _draw_left_ventricle(canvas: _Canvas, heart: _Heart, textures: _HeartTextures) -> None:
    """Paint the wall and the cavity of the left ventricle, with trabeculae and papillary muscles."""
    x, y, endocardium, epicardium = heart.x, heart.y, heart.endocardium, heart.epicardium
    contraction, height, twist = heart.contraction, heart.height, heart.twist
    outer = _Outline(x, y, epicardium * 1.02, epicardium * 0.99, 0.5, heart.waves)
    canvas.paint(outer, _MYOCARDIUM, textures.muscle, edge=1.2)
    # trabeculae: ripples of the inner rim, deeper as the cavity closes; few at the base
    ripple = (0.022 + 0.085 * contraction) * (1.3 - 0.9 * height)
    inner_waves = (
        *heart.waves,
        (7, 0.5 * ripple, 0.3 + 7.0 * twist),
        (11, 0.6 * ripple, 1.9 + 11.0 * twist),
        (17, 0.35 * ripple, 0.7 + 17.0 * twist),
    )
    cavity = _Outline(x + 0.3, y, endocardium * 1.02, endocardium * 0.98, 0.5, inner_waves)
    canvas.paint(cavity.grown(0.9), 0.5 * (BLOOD_SIGNAL + _MYOCARDIUM), textures.blood, edge=1.8)
    canvas.paint(cavity.grown(-0.5), BLOOD_SIGNAL, textures.blood, edge=1.4)

    papillary = float(np.clip(1.25 - abs(height - 0.42) * 2.6, 0.0, 1.0))
    if papillary > 0.45:
        for angle, radius, size in ((-0.75, 0.74, 6.0), (1.75, 0.73, 5.4)):
            direction = angle + twist
            muscle = _Outline(
                x + radius * endocardium * np.cos(direction),
                y + radius * endocardium * np.sin(direction),
                size * papillary * (1.0 - 0.15 * contraction),
                size * 0.78 * papillary * (1.0 - 0.1 * contraction),
                direction,
                ((2, 0.08, angle), (3, 0.1, 2.0 * angle)),
            )
            canvas.paint(muscle, _MYOCARDIUM * 1.08, textures.muscle, edge=1.6)


class BeatingThorax:
    """One slice of a patient, drawn frame by frame; the parts that do not beat are drawn once.

    Parameters
    ----------
    y_mm, x_mm
        ``(y,)`` and ``(x,)`` evenly spaced ascending coordinates of the pixels, see `pixel_positions`.
    slice_offset_mm, ejection_fraction, seed
        As for `beating_thorax`.
    """

    def __init__(
        self,
        y_mm: NDArray[np.float32],
        x_mm: NDArray[np.float32],
        *,
        slice_offset_mm: float = 0.0,
        ejection_fraction: float = 0.6,
        seed: int = 0,
    ) -> None:
        volume_curve(0.0, ejection_fraction)  # checks the fraction
        self._y, self._x = y_mm, x_mm
        self._slice_offset = slice_offset_mm
        self._ejection_fraction = ejection_fraction
        self._seed = seed
        self._thorax: dict[int, _Canvas] = {}
        rng = np.random.default_rng([seed, 3])
        self._textures = _HeartTextures(
            1.0 + 0.08 * _texture(rng, y_mm, x_mm, (5.0, 20.0)),
            1.0 + 0.035 * _texture(rng, y_mm, x_mm, (6.0, 30.0)),
            1.0 + 0.07 * _texture(rng, y_mm, x_mm, (6.0, 40.0)),
        )
        # off-resonance and receiver phase: a few radians over the field of view
        slow = _texture(rng, y_mm, x_mm, (350.0, 900.0))
        self._carrier = np.exp(1j * (0.8 * slow + 0.12 * _texture(rng, y_mm, x_mm, (90.0, 200.0)))).astype(np.complex64)
        distance = (x_mm[None, :] - _HEART[0]) ** 2 + (y_mm[:, None] - _HEART[1]) ** 2
        self._near_heart = np.exp(distance / np.float32(-2.0 * 28.0**2)).astype(np.float32)

    def frame(self, time: float, respiration_mm: float = 0.0) -> NDArray[np.complex64]:
        """Draw one moment: ``(y, x)``; `time` and `respiration_mm` as for `beating_thorax`."""
        moment = float(np.mod(time, 1.0))
        step = round(respiration_mm)  # the thorax is redrawn per millimetre of breath, the heart moves smoothly
        if step not in self._thorax:
            self._thorax[step] = _Canvas(self._y, self._x)
            _draw_thorax(self._thorax[step], self._slice_offset, float(step), self._seed)
        canvas = self._thorax[step].copy()
        volume = float(volume_curve(moment, self._ejection_fraction))
        _draw_heart(canvas, moment, volume, self._slice_offset, respiration_mm, self._textures)
        phase = np.float32(0.25 * np.sin(2.0 * np.pi * moment)) * self._near_heart  # of flowing blood
        image = np.empty(canvas.image.shape, np.complex64)
        np.multiply(canvas.image, np.cos(phase), out=image.real)
        np.multiply(canvas.image, np.sin(phase), out=image.imag)
        image *= self._carrier
        return image


def beating_thorax(
    times: ArrayLike,
    matrix: tuple[int, int],
    fov_mm: tuple[float, float],
    *,
    slice_offset_mm: float = 0.0,
    ejection_fraction: float = 0.6,
    respiration_mm: ArrayLike = 0.0,
    seed: int = 0,
) -> NDArray[np.complex64]:
    """Draw a short-axis cine of a heart in its thorax.

    Parameters
    ----------
    times
        ``(frame,)`` moments in the cardiac cycle as fraction of the RR interval, R wave at 0.
    matrix
        ``(ny, nx)`` pixels.
    fov_mm
        ``(y, x)`` field of view in mm. The body is about 325 mm wide (x) and 235 mm high (y).
    slice_offset_mm
        Distance from the mid-ventricular plane in mm, positive towards the base; the apex lies at -49 mm.
    ejection_fraction
        Stroke volume over end-diastolic volume.
    respiration_mm
        Downward shift of heart and upper abdomen in mm, one number or one per frame.
    seed
        Same seed, same patient.

    Returns
    -------
    NDArray[np.complex64]
        ``(frame, y, x)``, magnitude about `BLOOD_SIGNAL` in blood, smooth phase, fat with the opposite sign of water;
        pixel ``n // 2`` lies at 0 mm.

    Raises
    ------
    SettingsError
        If the matrix or field of view is not positive, or `respiration_mm` does not fit `times`.
    """
    ny, nx = matrix
    if ny < 1 or nx < 1 or min(fov_mm) <= 0:
        raise SettingsError(f"matrix and field of view must be positive, got {matrix} and {fov_mm} mm")
    moments = np.atleast_1d(np.asarray(times, dtype=np.float64))
    breaths = np.asarray(respiration_mm, dtype=np.float64)
    if moments.ndim != 1 or breaths.shape not in {(), (1,), moments.shape}:
        raise SettingsError(f"times must be (frame,) and respiration one number or one per frame, got {breaths.shape}")
    thorax = BeatingThorax(
        pixel_positions(ny, fov_mm[0]),
        pixel_positions(nx, fov_mm[1]),
        slice_offset_mm=slice_offset_mm,
        ejection_fraction=ejection_fraction,
        seed=seed,
    )
    frames = np.empty((len(moments), ny, nx), np.complex64)
    for frame, moment, breath in zip(frames, moments, np.broadcast_to(breaths, moments.shape), strict=True):
        frame[:] = thorax.frame(float(moment), float(breath))
    return frames
