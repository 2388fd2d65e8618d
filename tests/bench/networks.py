"""Measure the networks against transcriptions of their published forward passes, both sides of every ratio in one run.

``python -m tests.bench.networks [NAME ...]`` prints a table, on one thread unless ``--threads`` says otherwise. Both
sides have the same weights, and their images are compared before their times are. ``--precision`` prints another: what
the lower precisions of the convolutions do to the image and to the time, on the GPU where there is one, with the peak
of its memory. ``--slice`` reconstructs a slice of usual size as the engine does, windows and memory plan included; the
peak is that of the process, so give one NAME at a time. Nothing here is a test: a loaded machine would fail it for no
fault of the code.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch

from recon_core.coils.calibration import time_average
from recon_core.data import HybridSlice
from recon_core.inference import method, trained
from recon_core.inference.precision import precision_of_convolutions
from recon_core.networks.cinenet import CineNet, CineNetConfig
from recon_core.networks.crnn_mri import CRNNMRI
from recon_core.networks.crunet_mr import CRUNetMR
from recon_core.networks.cst_net import CSTNet
from recon_core.networks.dual_unet_resnet3d import DualUNetResNet3D, DualUNetResNet3DConfig
from recon_core.networks.golden import fill
from recon_core.networks.promptmr import PromptMR
from recon_core.networks.unet3d_mr import UNet3DMR
from recon_core.options import DSTDMOptions, NetworkOptions
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft, ifft
from recon_core.simulate.sampling import uniform_mask, variable_density_mask
from recon_core.weights.config import build_network
from recon_core.weights.manifest import WeightsEntry
from tests.bench.published import cinenet, crnn_mri, crunet_mr, cst_net, dual_unet_resnet3d, promptmr
from tests.helpers.networks import NETWORKS
from tests.parity_cases import cst_net as cst_net_case
from tests.parity_cases import dual_unet_resnet3d as dual_unet_case

REPEATS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(MEASUREMENTS)} (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", action="store_true", help="measure the precisions instead")
    parser.add_argument(
        "--slice", action="store_true", help="measure a slice of 25 frames, 10 coils, 208 x 256 instead"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure, names = (lambda name: MEASUREMENTS[name]()), [*MEASUREMENTS]
    rows = [("network", "data", "cinestream", "as published", "ratio", "difference")]
    if options.precision:
        measure, names = precisions, NETWORKS
        rows = [("network", "data", "precision", "time", "error to float32", "peak memory")]
    elif options.slice:
        measure, names = whole_slice, NETWORKS
        rows = [("network", "data", "time", "peak memory of the process", "of which before", "")]
    with torch.inference_mode():
        for name in options.names or names:
            rows += [tuple(row) for row in measure(name)]
            print(" | ".join(rows[-1]), file=sys.stderr)
    rows.insert(1, ("---",) * len(rows[0]))
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


def scan(n_frames: int, n_coils: int, n_y: int, n_x: int, *, varied: bool = False) -> HybridSlice:
    """A disc that pulsates, with smooth coil maps of unit norm."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, n_y), torch.linspace(-1, 1, n_x), indexing="ij")
    beat = torch.cos(2 * torch.pi * torch.arange(n_frames) / n_frames)[:, None, None]
    image = torch.where(y**2 + x**2 < 0.6 + 0.1 * beat, 1 + 0.3 * torch.sin(9 * x) * torch.cos(7 * y), 0.1)
    angle = 2 * torch.pi * torch.arange(n_coils)[:, None, None] / n_coils
    distance = (y - 1.5 * torch.sin(angle)) ** 2 + (x - 1.5 * torch.cos(angle)) ** 2
    maps = torch.exp(-distance / 2 + 0.4j * (x * torch.sin(angle) + y * torch.cos(angle)))
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    make = variable_density_mask(n_frames, n_y, 4, 8) if varied else uniform_mask(n_frames, n_y, 4, min(24, n_y // 2))
    mask = torch.from_numpy(make).to(maps.device)
    hybrid = fft(maps * (image * torch.exp(0.5j * x))[:, None], (-2,)) * mask[:, None, :, None]
    return HybridSlice(hybrid, mask, maps, *time_average(hybrid, mask))


def compared(name: str, data: HybridSlice, ours, published) -> list[str]:
    """Time two functions in turn; both give magnitudes ``(frame, y, x)``."""
    expected, image = published(), ours()
    difference = float((image - expected).norm() / expected.norm())
    seconds = [[], []]
    for _ in range(REPEATS):
        for times, function in zip(seconds, (ours, published), strict=True):
            synchronise()
            started = time.perf_counter()
            function()
            synchronise()
            times.append(time.perf_counter() - started)
    own, other = min(seconds[0]), min(seconds[1])
    return [name, size(data), f"{own:.2f} s", f"{other:.2f} s", f"{other / own:.2f}x", f"{difference:.0e}"]


def synchronise() -> None:
    """Wait for a GPU; the table of the CPU has none to wait for."""


def size(data: HybridSlice) -> str:
    n_frames, n_coils, n_y, n_x = data.hybrid.shape
    return f"{n_frames} frames, {n_coils} coil{'s' if n_coils > 1 else ''}, {n_y} x {n_x}"


def as_plain(array: torch.Tensor) -> torch.Tensor:
    """Lines (..., ky, x) in hybrid space to un-centred k-space (..., ky, kx), images in natural position."""
    return torch.fft.fft2(ifft(array, (-2,)), norm="ortho")


def measure_crunet_mr():
    data, network = scan(12, 10, 104, 112), filled(CRUNetMR())
    kspace = torch.view_as_real(as_plain(data.hybrid).mT.contiguous())[None]
    # the lines of the un-centred transform are those of the centred one, from another first line
    mask = torch.fft.ifftshift(data.mask, 1)[None, :1, None, None, :, None].float()
    maps = torch.view_as_real(data.maps.mT.contiguous())[None, None]
    plain = mask * kspace

    def published():
        return torch.view_as_complex(crunet_mr.forward(network, plain, mask, maps)[0]).abs().mT

    yield compared("crunet_mr", data, lambda: network.reconstruct(data).abs(), published)


def measure_unet3d_mr():
    data, network = scan(12, 10, 104, 112), filled(UNet3DMR())
    network.reconstruct(data)
    started = time.perf_counter()
    network.reconstruct(data)
    yield ["unet3d_mr", size(data), f"{time.perf_counter() - started:.2f} s", "", "", ""]


def measure_crnn_mri():
    data, network = scan(12, 1, 112, 104, varied=True), filled(CRNNMRI())
    data = HybridSlice(data.hybrid, data.mask, torch.ones_like(data.maps), data.reference, data.measured)
    kspace = as_plain(data.hybrid[:, 0])
    mask = torch.fft.ifftshift(data.mask, 1)[:, :, None].expand_as(kspace)

    def pairs(array):
        return torch.view_as_real(array.to(torch.complex64).permute(1, 2, 0).contiguous()).movedim(-1, 0)[None]

    image, measured = pairs(torch.fft.ifft2(kspace, norm="ortho")), pairs(kspace)
    both = mask.permute(1, 2, 0).float().expand(1, 2, -1, -1, -1)

    def published():
        result = crnn_mri.forward(network, image, measured, both)[0]
        return torch.linalg.vector_norm(result, dim=0).permute(2, 0, 1)

    yield compared("crnn_mri", data, lambda: network.reconstruct(data).abs(), published)


def measure_cinenet():
    data = scan(12, 10, 204, 448, varied=True)
    network = filled(CineNet(CineNetConfig(cascades=2, cg_iterations=6, channels=16, pools=3)))
    kspace = torch.view_as_real(fft(data.hybrid, (-1,)))[None]
    mask = data.mask.float()[None, :, None, :, None, None]
    maps = torch.view_as_real(data.maps)[None, None]
    yield compared(
        "cinenet, 2 of the 10 cascades of the training script",
        data,
        lambda: network.reconstruct(data).abs(),
        lambda: cinenet.forward(network, kspace, mask, maps)[0],
    )
    consistency = DataConsistency(data.maps, data.mask, data.hybrid)
    start = torch.view_as_real(consistency.zero_filled.contiguous())[None]
    weight = torch.ones(1)
    yield compared(
        "its conjugate gradients alone, 6 iterations",
        data,
        lambda: consistency.solve(consistency.zero_filled, 1.0, 6, joint=True).abs(),
        lambda: torch.linalg.vector_norm(cinenet.solve(network, start, start, weight, mask, maps)[0], dim=-1),
    )


def measure_promptmr():
    data, network = scan(5, 10, 96, 128), filled(PromptMR())
    yield compared(
        "promptmr",
        data,
        lambda: network.reconstruct(data).abs(),
        lambda: promptmr.forward(network, data.hybrid, data.mask),
    )


def measure_cst_net():
    data, network = scan(16, 1, 96, 96, varied=True), filled(CSTNet(), cst_net_case.fill_all)
    data = HybridSlice(data.hybrid, data.mask, torch.ones_like(data.maps), data.reference, data.measured)
    image = torch.view_as_real(ifft(data.hybrid[:, 0], (-2,)).contiguous())[None]
    measured = torch.view_as_real(fft(data.hybrid[:, 0], (-1,)))[None]
    mask = data.mask.float()[None, :, :, None, None].expand_as(measured)

    def published():
        return torch.linalg.vector_norm(cst_net.forward(network, image, measured, mask)[0], dim=-1)

    yield compared("cst_net", data, lambda: network.reconstruct(data).abs(), published)


def measure_dual_unet_resnet3d():
    data = scan(20, 1, 192, 192, varied=True)
    image = torch.rand(1, 20, 192, 192) * torch.exp(0.3j * torch.rand(1, 20, 192, 192))
    series = torch.stack((image.real, image.imag), 2)
    for fusion in ("resnet", "none"):
        network = filled(DualUNetResNet3D(DualUNetResNet3DConfig(fusion=fusion)), dual_unet_case.fill)
        yield compared(
            f"dual_unet_resnet3d, fusion {fusion}",
            data,
            lambda network=network: network(image, None).abs()[0],
            lambda network=network: dual_unet_resnet3d.forward(network, series)[0],
        )


def precisions(name: str):
    """What the precisions cost and bring; the weights are those that training would start from."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    network = build_network(name, {}).eval().to(device)
    n_frames = network.maximum_frames or max(12, network.minimum_frames)
    plain = scan(n_frames, 10, *((208, 448) if device.type == "cuda" else (64, 64)), varied=True)
    tensors = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    data = HybridSlice(**{key: value.to(device) if torch.is_tensor(value) else value for key, value in tensors.items()})
    exact = None
    for precision in ("float32", "tf32", "bfloat16", "float16") if device.type == "cuda" else ("float32", "bfloat16"):
        with precision_of_convolutions(precision, device):
            network.reconstruct(data)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            image = network.reconstruct(data).cpu()
            seconds = time.perf_counter() - started
        exact = image if exact is None else exact
        peak = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if device.type == "cuda" else ""
        error = float((image - exact).norm() / exact.norm())
        yield [name, size(data), precision, f"{seconds:.3f} s", f"{error:.1e}", peak]


def whole_slice(name: str):
    """A slice of usual size at the published width; dSTDM takes 2 of its 20 steps, which cost the same each."""
    config = {"ct_dropout": "true"} if name == "atlf_net" else {}
    own = DSTDMOptions(steps=2) if name == "dstdm" else None
    torch.manual_seed(0)
    network = build_network(name, config).eval().requires_grad_(False)
    entry = WeightsEntry(method=name, name="untrained", file=Path("none"), sha256="0" * 64)
    with (
        patch.object(method, "find_weights", return_value=entry),
        patch.object(trained, "load_network", lambda *_: network),
    ):
        reconstruct = method.NetworkMethod(name, NetworkOptions(), own)
    data = scan(25, 10, 208, 256)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    image = reconstruct(data)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    finite = "" if bool(image.isfinite().all()) else "not finite"
    yield [name, size(data), f"{seconds:.0f} s", f"{peak / 2**20:.1f} GB", f"{before / 2**20:.1f} GB", finite]


def filled(network, how=fill):
    """Deterministic weights; what they are does not change the time."""
    how(network)
    return network.eval()


MEASUREMENTS = {
    "crunet_mr": measure_crunet_mr,
    "unet3d_mr": measure_unet3d_mr,
    "crnn_mri": measure_crnn_mri,
    "cinenet": measure_cinenet,
    "promptmr": measure_promptmr,
    "cst_net": measure_cst_net,
    "dual_unet_resnet3d": measure_dual_unet_resnet3d,
}


if __name__ == "__main__":
    main()
