"""3D UNet-MR: arrays as those of CRUNet-MR; there is no golden case."""

from recon_core.networks.golden import fill
from recon_core.networks.unet3d_mr import UNet3DMR, UNet3DMRConfig
from tests.parity_cases.crunet_mr import improve


def run(arrays, config):
    """Images of every cascade and the last."""
    network = UNet3DMR(
        UNet3DMRConfig(
            cascades=config.get("num_cascades", 5),
            channels=config.get("chans", 64),
            bottleneck_kernel=config.get("bottleneck_kernel", 1),
        )
    ).eval()
    fill(network)
    images, _ = improve(network, arrays, centred=config.get("fft") == "centred")
    return {"x_init": images[0], "cascade_out": images[1:, 0], "out": images[-1]}
