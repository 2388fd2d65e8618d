"""Fewer, virtual coils: the combinations of receive coils that hold nearly all of the signal.

Buehrer, Pruessmann, Boesiger, Kozerke, Magn Reson Med 2007, doi:10.1002/mrm.21237.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recon_core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class CoilCompression:
    """Collects readouts, a few or all of a slice, and finds the combinations of coils that hold their energy.

    Only the covariance of the coils is kept, so that any number of readouts costs the same memory.

    Parameters
    ----------
    n_coils
        Coils of the readouts, at least one.
    """

    def __init__(self, n_coils: int) -> None:
        self._covariance = np.zeros((n_coils, n_coils), np.complex128)

    def add(self, lines: NDArray[np.complex64]) -> None:
        """Take in more signal.

        Parameters
        ----------
        lines
            ``(..., coil, sample)`` complex64 readouts, noise-whitened, any domain, always in the same unit.

        Raises
        ------
        DataError
            If the number of coils is not the one announced.
        """
        n_coils = len(self._covariance)
        if lines.ndim < 2 or lines.shape[-2] != n_coils:
            raise DataError(f"coil compression expects readouts (..., {n_coils} coils, sample), got {lines.shape}")
        coils = np.moveaxis(lines, -2, 0).reshape(n_coils, -1).astype(np.complex128)
        self._covariance += coils @ coils.conj().T

    def matrix(self, *, coils: int | None = None, energy: float = 0.99) -> NDArray[np.complex64]:
        """Find the virtual coils of what was added; see `compression_matrix`."""
        return compression_matrix(self._covariance, coils=coils, energy=energy)


def compression_matrix(
    covariance: NDArray[np.complex128], *, coils: int | None = None, energy: float = 0.99
) -> NDArray[np.complex64]:
    """Find the virtual coils that hold most of the energy.

    Parameters
    ----------
    covariance
        ``(coil, coil)``, sum over samples of ``sample_p * conj(sample_q)`` of noise-whitened data; any unit.
    coils
        Virtual coils to keep, at least one; all where there are fewer receive coils. None keeps as many as `energy`
        asks for.
    energy
        Share of the energy to keep, above 0 and at most 1, with as few virtual coils as possible; noise counts as
        energy. Used where `coils` is None.

    Returns
    -------
    NDArray[np.complex64]
        ``(virtual coil, coil)`` with orthonormal rows, most energy first; its product with the coils of the data gives
        the virtual coils, and whitened noise stays white. Its conjugate transpose leads back.

    Raises
    ------
    DataError
        If the covariance holds no signal or values that are not finite, or if `coils` or `energy` are out of range.
    """
    if coils is not None and coils < 1:
        raise DataError(f"coil compression must keep at least one coil, got {coils}")
    if not 0 < energy <= 1:
        raise DataError(f"the energy that coil compression keeps must be above 0 and at most 1, got {energy:g}")
    strength = np.trace(covariance).real
    if not np.isfinite(covariance).all() or strength <= 0:
        raise DataError(
            "coil compression needs signal, but the readouts hold "
            f"{'only zeros' if strength == 0 else 'values that are not finite'}"
        )
    values, vectors = np.linalg.eigh(covariance / strength)
    shares = np.cumsum(values[::-1].clip(min=0))
    if coils is None:
        # Rounding must not ask for one more coil than there is energy for.
        coils = 1 + int(np.searchsorted(shares, energy * shares[-1] * (1 - 1e-12)))
    rows: NDArray[np.complex64] = vectors[:, ::-1][:, :coils].conj().T.astype(np.complex64)
    return rows
