"""Where the samples of readouts lie that follow no grid: as the sender wrote it, or by the angle of spokes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gadgets.problems import Kind
from gadgets.wire.messages import AcquisitionFlag
from recon_core.errors import DataError, HeaderError
from recon_core.off_grid.settings import TrajectorySettings
from recon_core.off_grid.trajectory import UNITS, angle_step, spoke_positions, to_cycles_per_pixel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gadgets.problems import Problems
    from gadgets.wire.header import Encoding, ScanHeader
    from gadgets.wire.messages import Readouts


_FLAT = 1e-3  # largest third position, in that of the others, of a trajectory in a plane
_HALF = 0.3  # share of the samples before the centre below which a spoke is half of one


class SpokePositions:
    """Places the samples of the readouts of one scan.

    Parameters
    ----------
    header
        The scan's header.
    settings
        Those of the trajectory; None takes their defaults.
    problems
        Where to note what was taken for what.
    spokes
        Spokes of a frame, where a setting says so; 0 takes the limits of the header.
    """

    def __init__(
        self, header: ScanHeader, settings: TrajectorySettings | None, problems: Problems, spokes: int = 0
    ) -> None:
        self._header = header
        self._settings = settings or TrajectorySettings()
        self._problems = problems
        self._spokes = spokes
        self._units: dict[int, str] = {}  # by encoding
        self._weighted: dict[int, bool] = {}  # by encoding: whether readouts have density weights
        self._arrived: dict[tuple[int, int], int] = {}  # readouts by encoding and slice

    def __call__(self, readouts: Readouts) -> NDArray[np.float32]:
        """Place the samples of readouts of one encoding.

        Parameters
        ----------
        readouts
            As they came; those with `trajectory` have it ``(readout, sample, dimension)``.

        Returns
        -------
        NDArray[np.float32]
            ``(readout, sample, 2)`` in cycles per pixel, (x, y), or with the density weight as third value.

        Raises
        ------
        HeaderError
            If there is no trajectory and no setting that makes one.
        DataError
            If the trajectory cannot be.
        """
        space = int(readouts.headers["encoding_space_ref"][0])
        encoding = self._header.encodings[space]
        source, written = self._settings.source, readouts.trajectory
        announced = int(readouts.headers["trajectory_dimensions"][0])
        lacks_some = bool(announced) or space in self._units
        if source == "auto" and written is None and not lacks_some and encoding.trajectory == "goldenangle":
            source = "golden"
            text = (
                "the header says goldenangle, and the readouts carry no trajectory: the golden angle is taken, in the "
                "order of arrival; trajectory, angle_increment and angle_counter say otherwise"
            )
            self._problems.add(Kind.TRAJECTORY, text, damage=False, pixels=True)
        if source in ("auto", "traj"):
            if written is not None:
                return self._written(written, encoding, space)
            if announced:
                raise DataError(
                    f"a trajectory of {announced} dimensions is announced, and there is none of that length; set "
                    "trajectory to uniform, golden or tiny_golden for spokes at such angles"
                )
            if lacks_some:
                raise DataError("there is no trajectory, and the readouts before had one")
            raise HeaderError(
                f"encoding {space} is {encoding.trajectory}, but the readouts carry no trajectory; set trajectory "
                "to uniform, golden or tiny_golden for spokes at such angles"
            )
        return self._spokes_at(readouts, encoding, source)

    def lost(self, readouts: Readouts) -> None:
        """Count readouts of one encoding off the grid that cannot be used, so that later ones keep their angles.

        One without samples that is the last of the scan is no more than its mark.
        """
        if readouts.data.size or not readouts.flagged(AcquisitionFlag.LAST_IN_MEASUREMENT).all():
            self._arrivals(readouts)

    def _written(self, values: NDArray[np.float32], encoding: Encoding, space: int) -> NDArray[np.float32]:
        """The trajectory as the sender wrote it."""
        values = np.asarray(values, np.float32)
        dimensions = values.shape[2]
        if dimensions not in (2, 3):
            raise DataError(f"the trajectory has {dimensions} dimensions; expected 2, or 3 with a density weight")
        columns, rows = encoding.encoded.matrix[:2]
        width, height = encoding.encoded.field_of_view[:2]
        positions, unit = to_cycles_per_pixel(
            values[..., :2], (rows, columns), self._units.get(space, self._settings.unit), (height, width)
        )
        if space not in self._units:
            self._units[space] = unit
            text = f"the trajectory of encoding {space} is taken to be in {UNITS[unit]}; trajectory_unit says otherwise"
            self._problems.add(Kind.TRAJECTORY, text, damage=False)
        third = values[..., 2:]
        weighted = bool(third.size) and _is_weight(third, values)
        if not self._weighted.setdefault(space, weighted):
            return positions
        if not weighted:
            raise DataError("the trajectory has no density weights, and that of the first readouts had some")
        return np.concatenate([positions, third], axis=-1)

    def _spokes_at(self, readouts: Readouts, encoding: Encoding, source: str) -> NDArray[np.float32]:
        """Straight spokes at the angles of a law; reversed ones run from their other end."""
        settings = self._settings
        samples = readouts.data.shape[2]
        reverse = readouts.flagged(AcquisitionFlag.REVERSE)
        center = readouts.headers["center_sample"].astype(np.int64)
        center = np.where(center < samples, center, samples // 2)
        center = np.where(reverse, samples - 1 - center, center)
        half = int(center[0]) < _HALF * samples
        counters = readouts.headers["idx"]
        spokes = self._spokes or encoding.count("kspace_encoding_step_1")
        step = settings.increment or angle_step(source, spokes, half=half, tiny=settings.tiny)
        if math.isclose(math.remainder(step, 360 if half else 180), 0, abs_tol=1e-6):
            raise HeaderError(
                f"with {step:g} degrees from spoke to spoke all lie at one angle; set angle_increment, or for uniform "
                "angles lines_per_frame where the limits of the header do not say how many spokes a frame has"
            )
        by = settings.counter
        if by == "auto":
            by = "line" if source == "uniform" else "arrival"
        number = counters["kspace_encode_step_1"].astype(np.float64) if by == "line" else self._arrivals(readouts)
        angle = number * step
        angle = np.deg2rad(settings.first + (-angle if settings.rotation == "clockwise" else angle))
        columns, rows = encoding.encoded.matrix[:2]
        path = np.empty((len(readouts), samples, 2), np.float32)
        for middle in np.unique(center).tolist():
            own = center == middle
            across = max(encoding.spoke, 2 * max(middle, samples - middle) - (samples - middle == middle + 1))
            path[own] = spoke_positions(angle[own], samples, middle, (rows, columns), across / max(rows, columns))
        path[reverse] = path[reverse, ::-1]
        return path

    def _arrivals(self, readouts: Readouts) -> NDArray[np.float64]:
        """The number of each readout among those of its slice."""
        counters = readouts.headers["idx"]
        number = np.empty(len(readouts))
        for index in np.unique(counters["slice"]).tolist():
            key = int(readouts.headers["encoding_space_ref"][0]), index
            own = np.flatnonzero(counters["slice"] == index)
            begin = self._arrived.get(key, 0)
            number[own] = begin + np.arange(len(own))
            self._arrived[key] = begin + len(own)
        return number


def _is_weight(third: NDArray[np.float32], values: NDArray[np.float32]) -> bool:
    """Whether the third value of a trajectory is a density weight; one that is the same everywhere means nothing.

    Raises
    ------
    DataError
        If it is a position: such a scan is not of one plane.
    """
    if not np.isfinite(third).all():
        raise DataError("the third column of the trajectory has values that are not finite")
    largest = float(np.abs(third).max())
    if largest <= _FLAT * float(np.abs(values[..., :2]).max()):
        return False
    along = float(np.ptp(third, axis=1).max())
    if float(third.min()) < 0 or (along <= _FLAT * largest and float(np.ptp(third)) > _FLAT * largest):
        raise DataError(
            "the trajectory has three dimensions, as a stack of stars or a koosh ball has; only slices of one plane "
            "can be reconstructed. If the third column is a density weight, send it without negative values"
        )
    return not math.isclose(along, 0.0, abs_tol=_FLAT * largest)
