"""Options of the reconstruction, each declared once with type, default, help and limits.

The stream side extends this dataclass with its own settings; the XML parser, ``--set``, ``--help`` and the table in
the documentation are all made from the field metadata written here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from recon_core.methods import method_names


def option(
    default: bool | float | str,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    several: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:  # noqa: ANN401 - dataclasses.field is typed as its default for the reader of the class
    """Declare one option: its default value, one sentence of help, and what values are allowed.

    With `several` the value is one of the choices, or some of them with commas in between.
    """
    return field(
        default=default,
        metadata={"help": text, "choices": choices, "several": several, "minimum": minimum, "maximum": maximum},
    )


@dataclass(frozen=True, kw_only=True)
class ReconOptions:
    """What the reconstruction core can be asked for; every field has a default that works."""

    method: str = option("cg_sense", "reconstruction method", choices=method_names())
    fallback: str = option(
        "cg_sense",
        "method that takes over when the chosen one cannot do the scan; none makes that an error",
        choices=("cg_sense", "zero_filled", "none"),
    )
    weights: str = option(
        "",
        "networks: name of the trained weights, as cinestream methods lists them; empty takes the first of the method",
    )
    outside_range: str = option(
        "fallback",
        "networks: what becomes of a scan that is not like those of the training, or of an image that contradicts the "
        "data or is far from that of cg_sense: fallback sends the fallback's image instead, beside sends both, the "
        "fallback's in a series of its own, note only says so",
        choices=("fallback", "beside", "note"),
    )
    extra_series: str = option(
        "none",
        "further series: zero_filled shows what the sampling leaves, fallback what the fallback makes of the scan, "
        "difference how far the method is from it, times 5; some of them with commas in between",
        choices=("none", "zero_filled", "fallback", "difference"),
        several=True,
    )
    window: int = option(
        0,
        "networks: frames that are reconstructed together, in windows around the cycle; 0 takes what the weights were "
        "trained with, else all frames",
        minimum=0,
    )
    precision: str = option(
        "float32",
        "networks: precision of the convolutions; everything else stays in float32",
        choices=("float32", "tf32", "bfloat16", "float16"),
    )
    sampler: str = option(
        "fast",
        "dstdm: fast takes 20 steps from a first image, fastest 10, paper 100 of both orientations from noise",
        choices=("fast", "fastest", "paper"),
    )
    sampler_steps: int = option(0, "dstdm: steps, two or more; 0 takes those of the sampler", minimum=0, maximum=10000)
    seed: int = option(0, "dstdm: of the noise; the same seed gives the same image", minimum=0, maximum=2**31)
    samples: int = option(
        1,
        "dstdm: images that are drawn and averaged; with two or more their standard deviation becomes a series",
        minimum=1,
        maximum=1000,
    )
    consistency_repetitions: int = option(
        0,
        "dstdm: how often measured samples are put back after a step; 0 takes one, or three from a poor first image",
        minimum=0,
        maximum=100,
    )
    consistency_iterations: int = option(
        0,
        "dstdm: conjugate gradient steps instead of putting measured samples back; 0 puts back",
        minimum=0,
        maximum=100,
    )
    start_noise: float = option(
        0.0,
        "dstdm: noise added to the first image, relative to its peak; 0 takes it from the data",
        minimum=0.0,
        maximum=100.0,
    )
    iterations: int = option(30, "cg_sense: iterations at most", minimum=1, maximum=1000)
    signal_prior: bool = option(
        True, "cg_sense: regularise by the noise level over the expected signal of each pixel, where noise was measured"
    )
    regularization: float = option(
        1e-3,
        "cg_sense: fixed Tikhonov weight lambda of (A^H A + lambda) x = A^H y, where signal_prior is not used",
        minimum=0.0,
    )
    tolerance: float = option(
        1e-4, "cg_sense: residual, relative to that of a zero image, at which it stops early", minimum=0.0
    )
    warm_start: bool = option(
        True,
        "cg_sense: start every frame from the image of the time average, to which the regularisation then draws; false "
        "starts from zero and draws to it, every frame on its own",
    )
    grappa_calibration: str = option(
        "average",
        "grappa: learn the weights once, from the separate reference or the time average, or in every frame from its "
        "own reference lines",
        choices=("average", "frame"),
    )
    low_rank_weight: float = option(
        0.01, "low_rank_sparse: threshold of singular values, relative to the largest", minimum=0.0, maximum=1.0
    )
    sparse_weight: float = option(
        0.01,
        "low_rank_sparse: threshold of the temporal spectrum, relative to the largest pixel",
        minimum=0.0,
        maximum=1.0,
    )
    low_rank_sparse_iterations: int = option(50, "low_rank_sparse: passes at most", minimum=1, maximum=1000)
    low_rank_sparse_momentum: bool = option(
        True, "low_rank_sparse: converge with momentum; false runs the published iteration with its stopping rule"
    )
    maps: str = option(
        "walsh",
        "how coil maps are estimated: walsh always gives maps, espirit is best with 12 or more central lines, inati is "
        "fast with a complete average",
        choices=("walsh", "espirit", "inati"),
    )
    map_neighbourhood: int = option(
        7, "walsh, inati: side of the square, in pixels, over which maps are taken as constant", minimum=1, maximum=101
    )
    map_refinements: int = option(
        4,
        "walsh: how often maps from a short calibration centre are improved with the outer lines",
        minimum=0,
        maximum=100,
    )
    map_kernel: int = option(6, "espirit: side of the k-space patch, in samples", minimum=2, maximum=12)
    map_calibration: int = option(
        24, "espirit: side of the calibration block, in samples, at most", minimum=6, maximum=64
    )
    map_threshold: float = option(
        0.001,
        "espirit: squared singular value, relative to the largest, above which a vector counts as signal",
        minimum=1e-6,
        maximum=0.5,
    )
    map_crop: float = option(0.8, "espirit: eigenvalue above which a pixel has coil maps", minimum=0.0, maximum=0.99)
    map_soft: bool = option(False, "espirit: let coil maps fade out around map_crop instead of ending sharply")
    partial_fourier: str = option(
        "off",
        "classical methods: completes a k-space of which one side was not measured (partial Fourier, asymmetric echo) "
        "from the other, given a phase that varies slowly; pocs leaves less error, homodyne is a single pass",
        choices=("off", "pocs", "homodyne"),
    )
    kspace_filter: float = option(
        0.0,
        "Tukey window on the k-space of the images: share of it, from its edge, that fades out; 1 is a Hann window, 0 "
        "no filter",
        minimum=0.0,
        maximum=1.0,
    )
    g_factor: bool = option(
        False, "cg_sense, grappa: send the noise amplification of each slice as a series of its own"
    )
    units: str = option(
        "relative",
        "zero_filled, cg_sense, grappa: snr gives images in units of the standard deviation of the noise in a pixel, "
        "where noise was measured",
        choices=("relative", "snr"),
    )
    device: str = option(
        "auto", "where to compute: auto takes the GPU when there is one", choices=("auto", "cpu", "cuda")
    )
    implementation: str = option(
        "auto",
        "kernels of the data consistency: auto takes cupy on a GPU where it is installed",
        choices=("auto", "torch", "cupy"),
    )

    @property
    def extras(self) -> frozenset[str]:
        """What `extra_series` asks for."""
        return frozenset(self.extra_series.split(",")) - {"none"}
