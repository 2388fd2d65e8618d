"""The three steps of `recon_core.physics.kernels` with NumPy: what the others are compared with."""

import numpy as np
import torch


class NumpyKernels:
    """The steps by their definitions, on the memory of CPU tensors."""

    def weights(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Take the mask as it is."""
        del dtype
        return mask

    def expand(self, maps: torch.Tensor, image: torch.Tensor, lines: torch.Tensor) -> None:
        """Write ``maps * image`` to `lines`."""
        np.multiply(_numpy(maps)[:, None], _numpy(image)[:, :, None], out=_numpy(lines))

    def sample(self, lines: torch.Tensor, weights: torch.Tensor) -> None:
        """Set to zero, in place, what is not measured."""
        np.copyto(_numpy(lines), 0, where=~_numpy(weights)[:, :, None, None])

    def combine(self, lines: torch.Tensor, maps: torch.Tensor, image: torch.Tensor) -> None:
        """Write the sum over coils of ``maps * lines`` to `image`."""
        np.einsum("sfcxy,scxy->sfxy", _numpy(lines), _numpy(maps), out=_numpy(image))


def _numpy(tensor):
    """See the memory of a CPU tensor as an array."""
    return tensor.detach().numpy()
