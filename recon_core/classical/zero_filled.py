"""Zero filling: the inverse transform of what was measured; off the grid, gridding."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from recon_core.data import HybridSlice


class ZeroFilled:
    """A^H y: unmeasured lines stay zero, coils are combined with the maps; off the grid with density weights.

    Parameters
    ----------
    implementation
        Kernels that combine the coils: ``torch``, ``cupy`` or ``auto``.

    Notes
    -----
    Combination: Walsh et al., Magn Reson Med 2000, doi:10.1002/(SICI)1522-2594(200005)43:5<682::AID-MRM10>3.0.CO;2-G.
    """

    def __init__(self, implementation: str = "auto") -> None:
        self._implementation = implementation

    def __call__(self, data: HybridSlice) -> torch.Tensor:
        """Reconstruct one slice.

        Parameters
        ----------
        data
            The slice.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)`` complex64 in the units of the data; with a fraction f of the lines measured evenly, f
            times the true intensity.
        """
        return data.zero_filled(self._implementation)
