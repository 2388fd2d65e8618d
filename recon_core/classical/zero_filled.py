"""Zero filling: the inverse transform of what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recon_core.sense import SenseOperator

if TYPE_CHECKING:
    import torch

    from recon_core.options import ReconOptions


class ZeroFilled:
    """A^H y: unmeasured lines stay zero, coils are combined with the maps.

    Parameters
    ----------
    options
        Not consulted; every method is built from the same options.

    Notes
    -----
    Combination: Walsh et al., Magn Reson Med 2000, doi:10.1002/(SICI)1522-2594(200005)43:5<682::AID-MRM10>3.0.CO;2-G.
    """

    def __init__(self, options: ReconOptions) -> None:
        del options

    def __call__(self, hybrid: torch.Tensor, maps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Reconstruct one slice.

        Parameters
        ----------
        hybrid
            ``(frame, coil, ky, x)`` complex64 measured lines, transformed to image space along the readout.
        maps
            ``(coil, y, x)`` or ``(frame, coil, y, x)`` complex64, unit norm over the coils.
        mask
            ``(frame, ky)`` bool.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)`` complex64 in the units of the data; with a fraction f of the lines measured evenly, f
            times the true intensity.
        """
        return SenseOperator(maps, mask).adjoint(hybrid)
