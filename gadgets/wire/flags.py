"""What a readout is, going by all of its flags together: one table, for the whole stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gadgets.wire.messages import AcquisitionFlag, flag_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Readouts with one of these are no image data, whatever else they carry.
_OTHER = flag_mask(
    AcquisitionFlag.NOISE,
    AcquisitionFlag.NAVIGATION,
    AcquisitionFlag.PHASE_CORRECTION,
    AcquisitionFlag.DUMMY,
    AcquisitionFlag.PHASE_STABILIZATION_REFERENCE,
    AcquisitionFlag.PHASE_STABILIZATION,
)
# Scanners put these on image data too, as a mark of what else they are good for or what is to be done with them.
_MARKS = flag_mask(
    AcquisitionFlag.HP_FEEDBACK,
    AcquisitionFlag.RT_FEEDBACK,
    AcquisitionFlag.SURFACE_COIL_CORRECTION,
)


def carries_image(flags: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which readouts are image or calibration data without a doubt, going by their flags ``(readout,)``."""
    return np.asarray((flags & (_OTHER | _MARKS)) == 0)


def may_carry_image(flags: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which readouts carry a mark that is put on image data too: they are if no others of the scan are."""
    return np.asarray(((flags & _OTHER) == 0) & ((flags & _MARKS) != 0))


def is_reference(flags: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which readouts serve for the coil maps alone; with both flags of calibration they are image data as well."""
    both = AcquisitionFlag.CALIBRATION_AND_IMAGING.bit
    return np.asarray(((flags & AcquisitionFlag.PARALLEL_CALIBRATION.bit) != 0) & ((flags & both) == 0))
