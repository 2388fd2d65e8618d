"""The reconstruction methods by name, and all that the rest of the code must know of each before it is imported.

Light to import, so that names and help need no torch. A new method is a file with its class and an entry of `METHODS`;
no other module compares names of methods.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recon_core.errors import ModelError
from recon_core.words import choose_from

if TYPE_CHECKING:
    from collections.abc import Callable


#: The loss of a diffusion model as published: how badly it tells noise of all levels.
DENOISING = "denoising"


@dataclass(frozen=True, kw_only=True)
class TrainingInfo:
    """How the network of a method is trained, where that is not as for the others."""

    objective: str = "recon_core.training.objectives:image_objective"
    """``module:function`` that gives what a step minimises; signature of
    `recon_core.training.objectives.image_objective`."""
    loss: str = ""
    """Name of a loss of its own that the objective has besides `recon_core.training.losses.LOSSES`; empty without."""


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """The traits of a method."""

    target: str | Callable[[Any], Any]
    """``module:callable``, imported when the method is first needed, or the callable. It builds the method from its own
    group of `recon_core.options.ReconOptions` and the kernels to use; one of the user's own from all options."""
    label: str
    """Its name in the list of methods at the scanner."""
    summary: str
    """One sentence: what it does and what it needs."""
    reference: str
    """Address of the paper."""
    network: str | type[Any] = ""
    """``module:class`` of the network, or the class, for a method that needs trained weights; else empty."""
    framewise: bool = False
    """Apart from the reference and the coil maps, the image of a frame depends on the lines of that frame only."""
    linear: bool = False
    """The image is linear in the noise, so that the noise in each pixel is known."""
    g_factor: bool = False
    """The method amplifies the noise of a linear image, by a g-factor that can be measured."""
    samples: int = 0
    """Samples whose spread is its uncertainty, where `extra_series` asks for that; 0 where it has none. The option of
    this name, where its group has one, asks for more, or without the series of others."""
    off_grid: bool = False
    """It takes samples that follow no Cartesian grid: all that it needs of a slice are the operators or the consistency
    of `recon_core.data.HybridSlice`. A network if a trial has shown that it helps there."""
    points: bool = False
    """It takes masks of points: it goes by the operators or the consistency of `recon_core.data.HybridSlice`."""
    takes_ct: bool = False
    """It can use a CT of the same anatomy."""
    seconds: float = 0.0
    """Time on one core for a slice of `recon_core.steps.pace.REFERENCE_SHAPE`, of a network with its packaged weights
    and the image that they start from, without coil maps: ``python -m tests.bench.pace``. 0 where it is not known."""
    chooses: bool = False
    """It makes no image of its own: its target takes a `recon_core.steps.work.Work`, and gives one with the method that
    is best for that slice."""
    options: Any = None  # mypy does not take a class of dataclasses for hashable
    """Class of the options of a method of the user's own, derived from `recon_core.options.Options`; None for one
    without. Those of the methods of cinestream are groups of `recon_core.options.ReconOptions`."""
    training: TrainingInfo = field(default_factory=TrainingInfo)
    """How its network is trained."""


def _network(where: str, label: str, summary: str, reference: str, **traits: Any) -> MethodInfo:  # noqa: ANN401 - of several types
    return MethodInfo(
        target="recon_core.inference.method:NetworkMethod",
        label=label,
        summary=summary,
        reference=reference,
        network=f"recon_core.{where}",
        **{"points": True, **traits},
    )


METHODS: dict[str, MethodInfo] = {
    "auto": MethodInfo(
        target="recon_core.steps.choose:choose",
        label="Best for the scan",
        summary="for each slice the method that is known to be best for such scans and fits into the time (deadline)",
        reference="https://doi.org/10.1016/S0065-2458(08)60520-3",
        chooses=True,
    ),
    "zero_filled": MethodInfo(
        target="recon_core.classical.zero_filled:ZeroFilled",
        label="Zero-filled",
        summary="inverse FFT of the measured lines, coils combined with the maps; shows what the sampling leaves",
        reference="https://doi.org/10.1002/(SICI)1522-2594(200005)43:5<682::AID-MRM10>3.0.CO;2-G",
        framewise=True,
        linear=True,
        off_grid=True,
        points=True,
        seconds=0.039,
    ),
    "cg_sense": MethodInfo(
        target="recon_core.classical.cg_sense:CGSense",
        label="Iterative SENSE",
        summary="iterative SENSE around the image of the time average, regularised by the noise level; takes any "
        "pattern",
        reference="https://doi.org/10.1002/mrm.1241",
        framewise=True,
        linear=True,
        g_factor=True,
        off_grid=True,
        points=True,
        seconds=0.88,
    ),
    "grappa": MethodInfo(
        target="recon_core.classical.grappa:Grappa",
        label="GRAPPA",
        summary="missing lines from their neighbours, learned from reference lines or the time average; regular "
        "patterns only",
        reference="https://doi.org/10.1002/mrm.10171",
        framewise=True,
        linear=True,
        g_factor=True,
        seconds=0.18,
    ),
    "low_rank_sparse": MethodInfo(
        target="recon_core.classical.low_rank_sparse:LowRankSparse",
        label="Low rank plus sparse",
        summary="low rank plus sparse (L+S), all frames together; takes any pattern, best with one that changes over "
        "time",
        reference="https://doi.org/10.1002/mrm.25240",
        off_grid=True,
        points=True,
        seconds=3.5,
    ),
    "kt_sense": MethodInfo(
        target="recon_core.classical.kt_sense:KtSense",
        label="k-t SENSE",
        summary="k-t SENSE, all frames together, with a prior of their changes that is read off the scan itself; takes "
        "any pattern",
        reference="https://doi.org/10.1002/mrm.10611",
        samples=8,
        off_grid=True,
        points=True,
        seconds=0.93,
    ),
    "crunet_mr": _network(
        "networks.crunet_mr:CRUNetMR",
        "CRUNet-MR network",
        "convolutional recurrent U-Net, five cascades that hand their features on; any number of frames",
        "https://pmc.ncbi.nlm.nih.gov/articles/PMC12754836",
        off_grid=True,
        seconds=4.1,
    ),
    "crnn_mri": _network(
        "networks.crnn_mri:CRNNMRI",
        "CRNN-MRI network",
        "convolutional recurrent network over frames and iterations; patterns that change from frame to frame",
        "https://doi.org/10.1109/TMI.2018.2863670",
        off_grid=True,
        seconds=4.8,
    ),
    "unet3d_mr": _network(
        "networks.unet3d_mr:UNet3DMR",
        "3-D U-Net network",
        "CRUNet-MR with 3-D convolutions instead of recurrent units: the baseline of that work, our reading of it",
        "https://pmc.ncbi.nlm.nih.gov/articles/PMC12754836",
        off_grid=True,
        seconds=4.1,
    ),
    "cinenet": _network(
        "networks.cinenet:CineNet",
        "CineNet network",
        "U-Nets in the planes of time and space, conjugate gradients between them",
        "https://doi.org/10.1002/mp.14809",
        off_grid=True,
        seconds=5.4,
    ),
    "promptmr": _network(
        "networks.promptmr:PromptMR",
        "PromptMR network",
        "prompt-based U-Nets on five adjacent frames in k-space, with coil maps that it learns; magnitude images",
        "https://doi.org/10.48550/arXiv.2309.13839",
        points=False,
        seconds=8.2,
    ),
    "cst_net": _network(
        "networks.cst_net:CSTNet",
        "CST-Net network",
        "spatiotemporal transformer refined by recurrent layers, in windows of 16 frames; frames may be empty",
        "https://doi.org/10.1016/j.compbiomed.2024.109133",
        seconds=8.5,
    ),
    "dual_unet_resnet3d": _network(
        "networks.dual_unet_resnet3d:DualUNetResNet3D",
        "Dual U-Net network",
        "two U-Nets for real and imaginary part, fused to magnitudes, a fixed number of frames; no data consistency",
        "https://github.com/XiongWenye/Deep-Learning-Dynamic-MRI-Reconstruction",
        seconds=2.9,
    ),
    "unrolled_resnet3d": _network(
        "networks.unrolled_resnet3d:UnrolledResNet3D",
        "Unrolled ResNet network",
        "the dual U-Net unrolled, with trained data consistency after each cascade",
        "https://github.com/XiongWenye/Deep-Learning-Dynamic-MRI-Reconstruction",
        off_grid=True,
        seconds=4.7,
    ),
    "atlf_net": _network(
        "networks.atlf_net:ATLFNet",
        "ATLF-Net, with a CT",
        "unrolled network with stripe-shaped attention that a CT of the same anatomy may assist, frame by frame",
        "https://github.com/houxiaotong/ATLF-NET",
        seconds=7.7,
        takes_ct=True,
        training=TrainingInfo(objective="recon_core.training.objectives:assisted_objective"),
    ),
    "dstdm": _network(
        "diffusion.method:DSTDM",
        "Diffusion model",
        "diffusion model on planes of time and space, which improves a first image, or is sampled from noise",
        "https://doi.org/10.1109/TCI.2025.3598421",
        off_grid=True,
        seconds=16,
        samples=4,
        training=TrainingInfo(
            objective="recon_core.training.objectives:denoising_objective",
            loss=DENOISING,
        ),
    ),
}


#: Methods that are not part of cinestream, as `recon_core.own_methods` makes them known: what imports each.
OWN_METHODS: dict[str, Callable[[], MethodInfo]] = {}


def find_method(name: str) -> MethodInfo:
    """Find the traits of a method; one of the user's own is imported then.

    Parameters
    ----------
    name
        One of `method_names`.

    Raises
    ------
    ModelError
        If no method has this name, or one of the user's own cannot be imported.
    """
    if name in METHODS:
        return METHODS[name]
    if name in OWN_METHODS:
        return OWN_METHODS[name]()
    raise ModelError(f"there is no method {name!r}; {choose_from(name, sorted(method_names()))}")


def method_names(which: Callable[[MethodInfo], object] | None = None) -> tuple[str, ...]:
    """Names of the methods, in the order in which they are listed.

    Parameters
    ----------
    which
        Whether to name a method, by its traits; of the user's own, those that cannot be imported are left out. None
        names all and imports nothing.
    """
    names = (*METHODS, *OWN_METHODS)
    return names if which is None else tuple(name for name in names if _has(name, which))


def _has(name: str, which: Callable[[MethodInfo], object]) -> bool:
    try:
        return bool(which(find_method(name)))
    except ModelError:
        return False


def is_asked_for(asked: str, made: str) -> bool:
    """Whether images of the method `made` are what was asked for: that method itself, or one that chooses."""
    return made == asked or find_method(asked).chooses


def network_names() -> tuple[str, ...]:
    """Names of the methods that are networks, and need weights."""
    return method_names(lambda info: info.network)


def load_target(target: Any) -> Any:  # noqa: ANN401 - whatever the entry names
    """Import what an entry names as ``module:attribute``; what it holds itself is given as it is."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def why_not_off_grid(name: str) -> str:
    """Why a method cannot take samples that follow no Cartesian grid; empty if it can."""
    if find_method(name).off_grid:
        return ""
    able = ", ".join(method_names(lambda info: info.off_grid))
    return f"{name} needs samples on a Cartesian grid, and those of this scan follow none; {able} take them"


def why_not_points(name: str) -> str:
    """Why a method cannot take readouts that are not whole lines; empty if it can."""
    if find_method(name).points:
        return ""
    able = ", ".join(method_names(lambda info: info.points))
    return f"{name} needs whole lines, and the mask of this scan has points of them; {able} take it"
