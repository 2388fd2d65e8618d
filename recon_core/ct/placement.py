"""The CT of a scan: read once, brought to each slice, and what happens where that cannot be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recon_core.ct.alignment import check_alignment
from recon_core.ct.geometry import Transform, load_transform, resample, window
from recon_core.ct.load import load_volume
from recon_core.data import CtImage
from recon_core.errors import CinestreamError, DataError, ResourceError, SettingsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from recon_core.ct.geometry import SliceGeometry
    from recon_core.ct.settings import CtSettings
    from recon_core.ct.volume import CtVolume

_CACHED_SLICES = 64

OK = "ok"
SUSPECT = "ct_suspect"


@dataclass(frozen=True, eq=False)
class PlacedCt:
    """The CT of one slice, or why there is none."""

    status: str
    """``ok``, ``ct_suspect``, or ``no_ct:`` and a reason: ``empty``, ``missing``, ``unreadable``, ``geometry``,
    ``transform``, ``slice`` (the header of the MR does not say where it lies), ``coverage=0.41``, ``alignment``."""
    image: NDArray[np.float32] | None = None
    """``(y, x)`` float32 in [0, 1]; None where there is none."""
    cover: NDArray[np.bool_] | None = None
    """``(y, x)`` bool, where there is CT; None with `image`."""
    coverage: float = 0.0
    """Share of the pixels of the slice that lie inside the CT."""
    message: str = ""
    """A sentence for the log and the image comment, where something is wrong with this slice; else empty. What is wrong
    with the CT of the whole scan, `ScanCt.problem` says."""
    unfit: str = ""
    """Why the slice must not be reconstructed without a CT; empty where it may be, or has one."""

    @property
    def on_grid(self) -> CtImage | None:
        """The CT for the method; None where there is none."""
        return None if self.image is None else CtImage(self.image, self.cover)


class _Refused(NamedTuple):
    """Why there is no CT at all."""

    reason: str
    error: CinestreamError


class ScanCt:
    """The CT of one scan.

    Parameters
    ----------
    settings
        Where it is and how it is used.
    trained_without
        Whether the weights were trained with CT dropout (``ct_dropout`` of their config), so that they can do without.

    Raises
    ------
    SettingsError
        If a fallback is asked for that the weights cannot do; with the policy ``error`` also if there is no CT.
    ResourceError
        With the policy ``error``, if it cannot be read.
    DataError
        With the policy ``error``, if CT or transform must not be used.
    """

    def __init__(self, settings: CtSettings, *, trained_without: bool) -> None:
        if settings.policy == "fallback" and not trained_without:
            raise SettingsError(
                "ct_policy: fallback reconstructs slices without CT, and these weights were trained with CT only; take "
                "ct_policy=error, or weights that were trained with CT dropout"
            )
        self._settings = settings
        self._volume: CtVolume | None = None
        self._transform: Transform | None = None
        self._place = lru_cache(maxsize=_CACHED_SLICES)(self._resample)
        #: What was wrong with CT or transform, once for the log; empty where nothing was.
        self.problem = ""
        self._reason = ""
        refused = self._load()
        if refused is not None:
            if settings.policy == "error":
                raise refused.error
            self._reason = refused.reason
            self.problem = f"reconstructing without CT: {refused.error}"

    @property
    def digest(self) -> str:
        """SHA-256 of the CT; empty where there is none."""
        return self._volume.digest if self._volume else ""

    @property
    def transform_digest(self) -> str:
        """SHA-256 of the transform; empty where there is none."""
        return self._transform.digest if self._transform else ""

    def place(self, geometry: SliceGeometry, name: str, magnitude: NDArray[Any] | None = None) -> PlacedCt:
        """Bring the CT to a slice.

        Parameters
        ----------
        geometry
            The slice; slices that lie the same are resampled once.
        name
            What the slice is called in messages.
        magnitude
            ``(y, x)``, as `recon_core.ct.alignment.time_average_magnitude` makes it; None leaves the alignment alone.

        Returns
        -------
        PlacedCt
            With the policy ``fallback`` also where there is no CT.

        Raises
        ------
        DataError
            With the policy ``error``, if the slice does not lie inside the CT, or not say where it lies.
        """
        if self._volume is None:
            return PlacedCt(f"no_ct:{self._reason}")
        strict = self._settings.policy == "error"
        try:
            placed = self._place(geometry)
        except DataError as error:
            message = f"{name} cannot be found in the CT {self._settings.path}: {error}"
            if strict:
                raise DataError(message) from error
            return PlacedCt("no_ct:slice", message=message)
        if placed.coverage < self._settings.min_coverage:
            position = ", ".join(f"{part:.1f}" for part in geometry.position)
            message = (
                f"{name} at ({position}) mm lies inside the CT {self._settings.path} with {placed.coverage:.0%} of its "
                f"pixels, and ct_min_coverage is {self._settings.min_coverage:.0%}; check ct_transform and ct_frame"
            )
            if strict:
                raise DataError(message)
            return PlacedCt(f"no_ct:coverage={placed.coverage:.2f}", coverage=placed.coverage, message=message)
        return placed if magnitude is None else self._aligned(placed, name, magnitude)

    def _aligned(self, placed: PlacedCt, name: str, magnitude: NDArray[Any]) -> PlacedCt:
        if placed.image is None or placed.cover is None:
            return placed
        if magnitude.shape != placed.image.shape:
            raise DataError(f"the image of {name} must be {placed.image.shape} like its CT, got {magnitude.shape}")
        alignment = check_alignment(placed.image, magnitude, placed.cover)
        if not alignment.suspect:
            return placed
        rows, columns = alignment.shift
        message = (
            f"the CT may not lie where {name} is: its edges fit better {rows} rows and {columns} columns away "
            f"({alignment.best:.3g} against {alignment.similarity:.3g}); check ct_transform and ct_frame"
        )
        if self._settings.policy == "error":
            return replace(placed, status=SUSPECT, message=message)
        return PlacedCt("no_ct:alignment", coverage=placed.coverage, message=message)

    def _load(self) -> _Refused | None:
        settings = self._settings
        if not settings.path:
            return _Refused("empty", SettingsError("ct_path: is empty, and the method needs a CT; give one"))
        try:
            self._transform = (
                load_transform(Path(settings.transform), settings.transform_space) if settings.transform else None
            )
        except CinestreamError as error:
            return _Refused("transform", type(error)(f"ct_transform: {error}"))
        try:
            self._volume = load_volume(Path(settings.path))
        except SettingsError as error:
            return _Refused("missing", SettingsError(f"ct_path: {error}"))
        except ResourceError as error:
            return _Refused("unreadable", ResourceError(f"ct_path: {error}"))
        except DataError as error:
            return _Refused("geometry", DataError(f"ct_path: {error}"))
        return None

    def _resample(self, geometry: SliceGeometry) -> PlacedCt:
        settings = self._settings
        assert self._volume is not None  # noqa: S101 - for the type checker; `place` looks
        hu, cover = resample(
            self._volume,
            geometry,
            transform=self._transform.matrix if self._transform else None,
            frame=settings.frame,
            slab_samples=settings.slab_samples,
        )
        image = window(hu, settings.window)
        for shared in (image, cover):
            shared.flags.writeable = False
        return PlacedCt(OK, image, cover, float(cover.mean()))
