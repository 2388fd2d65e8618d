"""The reconstruction methods by name; light to import, so that names and help need no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodInfo:
    """What a user wants to know before choosing a method.

    Parameters
    ----------
    target
        ``module:callable`` that builds the method from `ReconOptions`; imported when the method is first needed.
    summary
        One sentence: what it does and what it needs.
    reference
        Address of the paper.
    network
        ``module:class`` of the network, for a method that needs trained weights; else empty.
    framewise
        Beside the reference and the coil maps, the image of a frame depends on the lines of that frame only.
    """

    target: str
    summary: str
    reference: str
    network: str = ""
    framewise: bool = False


#: Methods that are linear in the noise, so that it is known how much of it each pixel of their image has.
LINEAR = ("zero_filled", "cg_sense", "grappa")


def _network(where: str, summary: str, reference: str) -> MethodInfo:
    return MethodInfo("recon_core.networks.method:NetworkMethod", summary, reference, f"recon_core.{where}")


METHODS: dict[str, MethodInfo] = {
    "zero_filled": MethodInfo(
        "recon_core.classical.zero_filled:ZeroFilled",
        "inverse FFT of the measured lines, coils combined with the maps; shows what the sampling leaves",
        "https://doi.org/10.1002/(SICI)1522-2594(200005)43:5<682::AID-MRM10>3.0.CO;2-G",
        framewise=True,
    ),
    "cg_sense": MethodInfo(
        "recon_core.classical.cg_sense:CGSense",
        "iterative SENSE around the image of the time average, regularised by the noise level; takes any pattern",
        "https://doi.org/10.1002/mrm.1241",
        framewise=True,
    ),
    "grappa": MethodInfo(
        "recon_core.classical.grappa:Grappa",
        "missing lines from their neighbours, learned from reference lines or the time average; regular patterns only",
        "https://doi.org/10.1002/mrm.10171",
        framewise=True,
    ),
    "low_rank_sparse": MethodInfo(
        "recon_core.classical.low_rank_sparse:LowRankSparse",
        "low rank plus sparse (L+S), all frames together; takes any pattern, best with one that changes over time",
        "https://doi.org/10.1002/mrm.25240",
    ),
    "crunet_mr": _network(
        "networks.crunet_mr:CRUNetMR",
        "convolutional recurrent U-Net, five cascades that hand their features on; any number of frames",
        "https://pmc.ncbi.nlm.nih.gov/articles/PMC12754836",
    ),
    "crnn_mri": _network(
        "networks.crnn_mri:CRNNMRI",
        "convolutional recurrent network over frames and iterations; patterns that change from frame to frame",
        "https://doi.org/10.1109/TMI.2018.2863670",
    ),
    "unet3d_mr": _network(
        "networks.unet3d_mr:UNet3DMR",
        "CRUNet-MR with 3-D convolutions instead of recurrent units: the baseline of that work, our reading of it",
        "https://pmc.ncbi.nlm.nih.gov/articles/PMC12754836",
    ),
    "cinenet": _network(
        "networks.cinenet:CineNet",
        "U-Nets in the planes of time and space, conjugate gradients between them",
        "https://doi.org/10.1002/mp.14809",
    ),
    "promptmr": _network(
        "networks.promptmr:PromptMR",
        "prompt-based U-Nets on five adjacent frames in k-space, with coil maps that it learns; magnitude images",
        "https://doi.org/10.48550/arXiv.2309.13839",
    ),
    "cst_net": _network(
        "networks.cst_net:CSTNet",
        "spatiotemporal transformer refined by recurrent layers, in windows of 16 frames; frames may be empty",
        "https://doi.org/10.1016/j.compbiomed.2024.109133",
    ),
    "dual_unet_resnet3d": _network(
        "networks.dual_unet_resnet3d:DualUNetResNet3D",
        "two U-Nets for real and imaginary part, fused to magnitudes, a fixed number of frames; no data consistency",
        "https://github.com/XiongWenye/Deep-Learning-Dynamic-MRI-Reconstruction",
    ),
    "unrolled_resnet3d": _network(
        "networks.unrolled_resnet3d:UnrolledResNet3D",
        "the dual U-Net unrolled, with trained data consistency after each cascade",
        "https://github.com/XiongWenye/Deep-Learning-Dynamic-MRI-Reconstruction",
    ),
    "atlf_net": _network(
        "networks.atlf_net:ATLFNet",
        "unrolled network with stripe-shaped attention that a CT of the same anatomy may assist, frame by frame",
        "https://github.com/houxiaotong/ATLF-NET",
    ),
    "dstdm": _network(
        "diffusion.method:DSTDM",
        "diffusion model on planes of time and space, sampled around a first image or from noise",
        "https://doi.org/10.1109/TCI.2025.3598421",
    ),
}
