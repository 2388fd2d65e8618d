"""The encoding of a cine slice: coil maps, Fourier transform along y, sampling mask.

Only ky is undersampled, so the transform along the readout cancels in the normal operator: it is done once, before, and
everything here lives in hybrid space ``(ky, x)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from recon_core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Coil images in work at a time. On the CPU they should stay in the cache (measured: 3x faster than all frames at once),
# on the GPU they should be many enough to fill it.
_CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}


class SenseOperator:
    """A = M F S: image to measured lines, frame by frame.

    With maps of norm one or less in every pixel, the norm of A is at most one.

    Parameters
    ----------
    maps
        ``(coil, y, x)`` complex64, constant, or ``(frame, coil, y, x)``, one set per frame.
    mask
        ``(frame, ky)`` bool, True where a line was measured.

    Raises
    ------
    DataError
        If the axes of maps and mask disagree.

    Notes
    -----
    Pruessmann et al., Magn Reson Med 2001, doi:10.1002/mrm.1241.

    Internally y is the last, contiguous axis, and the centring shifts are gone from the loop: with the mask in FFT
    order, the shift of the k-space axis is a matter of storage, and that of the y axis a phase per line, which cancels
    in A^H A.
    """

    def __init__(self, maps: torch.Tensor, mask: torch.Tensor) -> None:
        if maps.ndim == 3:
            maps = maps[None]
        n_frames, n_lines = mask.shape
        if maps.ndim != 4 or maps.shape[0] not in (1, n_frames) or maps.shape[2] != n_lines:
            raise DataError(
                f"maps must be (coil, {n_lines}, x) or ({n_frames}, coil, {n_lines}, x) to fit a mask (frame, ky) = "
                f"{(n_frames, n_lines)}, got {tuple(maps.shape)}"
            )
        self._maps = maps.mT.contiguous()  # (1 or frame, coil, x, y)
        self._conjugate_maps = self._maps.conj().resolve_conj()
        mask = torch.fft.ifftshift(mask.to(maps.device), -1)[:, None, None, :]
        # Each weight twice, for real and imaginary part: a real product is half the work of a complex one.
        self._weights = mask.to(self._maps.real.dtype).repeat_interleave(2, -1)
        line = torch.arange(n_lines, dtype=torch.float64)
        turns = (line * (n_lines // 2)).remainder(n_lines) / n_lines
        phase = torch.polar(torch.ones_like(turns), 2 * torch.pi * turns)
        self._phase = phase.to(maps.device, self._maps.dtype)
        self.n_frames = n_frames
        frame_bytes = self._maps[0].numel() * self._maps.element_size()
        self._chunk = max(1, _CHUNK_BYTES.get(maps.device.type, _CHUNK_BYTES["cuda"]) // max(1, frame_bytes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Simulate the measurement.

        Parameters
        ----------
        image
            ``(frame, y, x)`` complex64.

        Returns
        -------
        torch.Tensor
            ``(frame, coil, ky, x)`` complex64, zero where nothing is measured, zero frequency at ``N//2``.
        """
        n_coils, n_x, n_y = self._maps.shape[1:]
        hybrid = image.new_empty((self.n_frames, n_coils, n_x, n_y))
        for frames, maps, _ in self._chunks():
            lines = self._mask(torch.fft.fft(maps * image.mT[frames, None], norm="ortho"), frames) * self._phase
            hybrid[frames] = torch.fft.fftshift(lines, -1)
        return hybrid.mT

    def adjoint(self, hybrid: torch.Tensor) -> torch.Tensor:
        """Combine the coil images of the measured lines.

        Parameters
        ----------
        hybrid
            ``(frame, coil, ky, x)`` complex64, zero frequency at ``N//2``; lines that the mask excludes are ignored.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)`` complex64.
        """
        image = hybrid.new_empty((self.n_frames, *self._maps.shape[2:]))
        for frames, _, conjugate_maps in self._chunks():
            lines = torch.fft.ifftshift(hybrid.mT[frames], -1) * self._phase.conj()
            coil_images = torch.fft.ifft(self._mask(lines, frames), norm="ortho")
            torch.sum(coil_images.mul_(conjugate_maps), 1, out=image[frames])
        return image.mT

    def normal(self, image: torch.Tensor) -> torch.Tensor:
        """Apply A^H A, the inner loop of every iterative method.

        Parameters
        ----------
        image
            ``(frame, y, x)`` complex64; fastest when y is contiguous in memory, as `adjoint` returns it.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)`` complex64.
        """
        result = image.new_empty((self.n_frames, *self._maps.shape[2:]))
        for frames, maps, conjugate_maps in self._chunks():
            lines = torch.fft.fft(maps * image.mT[frames, None], norm="ortho")
            coil_images = torch.fft.ifft(self._mask(lines, frames), norm="ortho")
            torch.sum(coil_images.mul_(conjugate_maps), 1, out=result[frames])
        return result.mT

    def _mask(self, lines: torch.Tensor, frames: slice) -> torch.Tensor:
        """Remove, in place, what is not measured from ``(frame, coil, x, ky)`` in FFT order."""
        torch.view_as_real(lines).flatten(-2).mul_(self._weights[frames])
        return lines

    def _chunks(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Give the frames in portions that bound the memory, each with its maps and their conjugate."""
        for start in range(0, self.n_frames, self._chunk):
            frames = slice(start, start + self._chunk)
            which = slice(None) if self._maps.shape[0] == 1 else frames
            yield frames, self._maps[which], self._conjugate_maps[which]
