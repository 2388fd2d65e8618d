import numpy as np
import pytest

from recon_core.data import CineSlice, CtImage, Receiver
from recon_core.errors import DataError

KSPACE = np.zeros((2, 3, 8, 6), np.complex64)
MASK = np.zeros((2, 8), bool)


def test_what_belongs_together_is_accepted():
    calibration = np.zeros((3, 8, 6), np.complex64)
    CineSlice(KSPACE, MASK, calibration=calibration, receiver=Receiver(np.zeros((5, 3), np.complex64)))
    CineSlice(KSPACE, MASK, receiver=Receiver(columns=np.ones(6, bool)))
    CineSlice(KSPACE, MASK, maps=calibration, context=1, periodic=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kspace": KSPACE[0]}, "k-space must be"),
        ({"kspace": KSPACE.astype(np.complex128)}, "k-space must be"),
        ({"mask": MASK[:1]}, "mask must be"),
        ({"mask": MASK.astype(np.uint8)}, "mask must be .* bool, got .* uint8"),  # of indices, where it chooses lines
        ({"points": np.ones((2, 8, 6), np.uint8)}, "points must be .* bool, got .* uint8"),
        ({"calibration": np.zeros((3, 8, 7), np.complex64)}, "calibration must be"),
        ({"receiver": Receiver(np.zeros((3, 4), np.complex64))}, "colouring must be"),
        ({"receiver": Receiver(np.zeros(3, np.complex64))}, "colouring must be"),
        ({"receiver": Receiver(columns=np.ones(8, bool))}, "columns must be"),
        ({"ct": CtImage(np.zeros((6, 8), np.float32))}, "ct must be"),
        ({"ct": CtImage(np.zeros((8, 6), np.float32), np.ones((6, 8), bool))}, "ct_cover must be"),
        ({"maps": np.zeros((3, 6, 8), np.complex64)}, "maps must be"),
        ({"context": 2}, "context must leave frames"),
        ({"context": -1}, "context must leave frames"),
    ],
)
def test_what_does_not_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        CineSlice(**{"kspace": KSPACE, "mask": MASK, **change})
