"""dSTDM: reconstruction by sampling from a diffusion prior."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from recon_core.diffusion.samplers import from_slices, reverse_diffusion
from recon_core.diffusion.score_network import ScoreConfig, ScoreNetwork
from recon_core.diffusion.sde import Schedule, VarianceExploding
from recon_core.diffusion.warm_start import KnownStart, start_noise, temporal_sense
from recon_core.errors import ModelError
from recon_core.networks.base import Network
from recon_core.options import DSTDMOptions
from recon_core.physics.memory import predicted_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from recon_core.data import HybridSlice
    from recon_core.diffusion.samplers import Directions, Noise
    from recon_core.options import Options
    from recon_core.physics.consistency import DataConsistency

_STEPS = {"fast": 20, "fastest": 10, "paper": 100}
_STEPS_FROM_KNOWN = {"fast": 4, "fastest": 2}  # from a start of which the error is known
_CONSISTENCY_ITERATIONS = 6
# From a first image this bad or worse, one replacement of the measured samples per step is not enough.
_POOR_START, _REPETITIONS = 0.2, 3
# Images that a step and the average over samples hold in addition to features and operator; measured.
_IMAGES = 11


class Samples(NamedTuple):
    """What several samples say."""

    image: torch.Tensor
    """``(frame, y, x)`` complex64, their mean; around a start with a known error what is sampled without noise."""
    deviation: torch.Tensor | None
    """``(frame, y, x)`` float32, their standard deviation: where the prior had a choice. None of a single sample."""


class DSTDM(Network):
    """dSTDM: dual-directional spatiotemporal diffusion model.

    Wang et al., IEEE Trans Comput Imaging 2025, doi:10.1109/TCI.2025.3598421. One score network, trained on planes of
    time and y, is applied to those and to the planes of time and x; after every step the measured samples are replaced.

    Parameters
    ----------
    config
        Settings of the score network; None takes the published ones.

    Notes
    -----
    The published sampler is the mode ``paper``: 200 passes of the network over the series (400 in the published code,
    which computes each twice). A pass takes 5.5 million multiplications per pixel and frame with 128 channels, 0.35
    million with 32. The other modes start from an image. Where its error is known, as that of ``kt_sense`` is, and of
    a network that went on from it, the prior improves it in 4 and 2 passes without any noise, each followed by the
    compromise between its image and the data that their errors ask for (Zhu et al., CVPRW 2023,
    doi:10.48550/arXiv.2305.08995). Else it is a reconstruction that uses time, with noise of three to six times its
    error; they take 20 and 10 passes.

    Where the published code normalises by the peak of the complete data, which a scan does not have, the peak of the
    time average counts here. Frames are continued around the cycle to a multiple of four, positions mirrored. State,
    noise and data consistency stay in float32 whatever the precision of the network. The noise is drawn on the CPU, so
    that all devices draw the same.
    """

    Config = ScoreConfig
    scale = "peak"
    unused_keys = "sigmas"
    #: Message for a user who imports the authors' weights.
    licence_notice = (
        "the published code of dSTDM (github.com/wangziblake/STDM) is for academic use only, and so are weights that "
        "were trained with it unless their owner says otherwise"
    )

    def __init__(self, config: ScoreConfig | None = None) -> None:
        super().__init__()
        self.score = ScoreNetwork(config)
        self.config = self.score.config
        #: How `reconstruct` samples.
        self.sampling = DSTDMOptions()

    def configure(self, options: Options) -> None:
        """Take over how to sample."""
        assert isinstance(options, DSTDMOptions)  # noqa: S101 - for the type checker; no other group belongs to dstdm
        self.sampling = options

    def authors_key(self, key: str) -> str:
        """Name, in the authors' checkpoints, of a tensor of this network."""
        return self.score.authors_key(key.removeprefix("score."))

    @classmethod
    def from_checkpoint(cls, document: Mapping[str, object]) -> dict[str, torch.Tensor] | None:
        """Take the running average out of what the authors' trainer saves; it reconstructs better than the last state.

        Parameters
        ----------
        document
            Everything in the file: ``model`` names the tensors, ``ema`` has the average of the parameters as a list in
            the same order.

        Returns
        -------
        dict
            The average by the names of the tensors; None if there is none in the file.

        Raises
        ------
        ModelError
            If the list does not fit the names.
        """
        model, average = document.get("model"), document.get("ema")
        if not isinstance(model, dict) or not isinstance(average, dict) or "shadow_params" not in average:
            return None
        names = [name for name in model if not str(name).endswith(cls.unused_keys)]
        tensors = average["shadow_params"]
        shapes = [getattr(tensor, "shape", None) for tensor in tensors]
        if shapes != [getattr(model[name], "shape", None) for name in names]:
            raise ModelError(
                f"the running average in the checkpoint has {len(shapes)} tensors that do not fit the {len(names)} "
                "parameters of its model; save the tensors to use alone"
            )
        return dict(zip(names, tensors, strict=True))

    def working_bytes(self, shape: tuple[int, int, int, int]) -> int:
        """Predict the memory that `reconstruct` takes; see `Network.working_bytes`."""
        n_frames, _, n_y, n_x = shape
        device = next(self.parameters()).device.type
        image = 8 * n_frames * n_y * n_x
        held = predicted_bytes("consistency", shape, device=device)
        features = max(
            self.score.peak_bytes(n_x, n_frames, n_y, device), self.score.peak_bytes(n_y, n_frames, n_x, device)
        )
        return held + _IMAGES * image + features

    def reconstruct(self, data: HybridSlice, *, implementation: str = "auto") -> torch.Tensor:
        """Reconstruct one slice as `sampling` says; see `Network.reconstruct`.

        From two drawn samples on, their standard deviation is added to `data` as the extra image ``uncertainty``.
        """
        image, deviation = self.sample(data, implementation=implementation)
        if deviation is not None:
            data.extra["uncertainty"] = deviation
        return image

    def sample(
        self, data: HybridSlice, sampling: DSTDMOptions | None = None, *, implementation: str = "auto"
    ) -> Samples:
        """Sample one slice.

        Parameters
        ----------
        data
            The slice, scaled so that the peak of its time average is that of the training.
        sampling
            How; None takes the attribute `sampling`.
        implementation
            As for `reconstruct`.

        Returns
        -------
        Samples
            In the units of the data; zero where the coil maps are, and everywhere if the data are.
        """
        sampling = sampling or self.sampling
        consistency = data.consistency(implementation)
        empty = torch.zeros_like(consistency.zero_filled)
        if not bool(consistency.zero_filled.ne(0).any()):
            return Samples(empty, None if sampling.samples == 1 else empty.real)
        generator = torch.Generator().manual_seed(sampling.seed)

        def random(shape: tuple[int, ...]) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(empty.device)

        plan = self._plan(data, consistency, sampling)
        taken = f"{len(plan.schedule.gains)} steps from noise "
        if not any(note.startswith(taken) for note in data.notes):  # that of one window will do for all
            data.notes.append(f"{taken}{plan.level:.2g}" + f", seed {sampling.seed}" * (not plan.quiet))
        n_frames, n_y, n_x = empty.shape

        def sample(noise: Noise | None) -> torch.Tensor:
            start = plan.first
            if noise is not None:
                start = from_slices(noise((n_x, 2, n_frames, n_y)).mul_(plan.level), "y").add_(start)
            return self._walk(start, plan, noise)

        if plan.quiet:
            return Samples(sample(None), None)
        return _mean_and_deviation(sample(random) for _ in range(sampling.samples))

    def step(self, data: HybridSlice, place: float) -> torch.Tensor:
        """Take one of the steps from a start with a known error, for training: without what follows.

        Parameters
        ----------
        data
            The slice, with `HybridSlice.start_deviation`.
        place
            Which step: from 0, the first, to below 1.

        Returns
        -------
        torch.Tensor
            ``(frame, y, x)`` complex64, consistent with the data; gradients are those of this step alone.

        Raises
        ------
        ModelError
            If the error of the start is not known, or the sampler is ``paper``.
        """
        with torch.no_grad():
            plan = self._plan(data, data.consistency(), self.sampling)
            if not plan.quiet:
                raise ModelError(
                    "expected a start whose error is known, got none; train with start kt_sense, or weights that start "
                    "from it, or with loss denoising"
                )
            number = int(place * len(plan.schedule.gains))
            before = self._walk(plan.first, plan, None, range(number))
        return self._walk(before, plan, None, range(number, number + 1))

    def _walk(self, image: torch.Tensor, plan: _Plan, noise: Noise | None, steps: range | None = None) -> torch.Tensor:
        return reverse_diffusion(
            image,
            self.score.evaluate,
            plan.consistent,
            plan.schedule,
            noise,
            directions=plan.directions,
            steps=steps,
        )

    def _plan(self, data: HybridSlice, consistency: DataConsistency, sampling: DSTDMOptions) -> _Plan:
        """Where to start from, which steps to take, and how to agree with the data after each."""
        process = VarianceExploding(self.score.config.sigma_min, self.score.config.sigma_max)
        if sampling.sampler == "paper":
            schedule = Schedule.published(process, sampling.steps or _STEPS["paper"])
            first = torch.zeros_like(consistency.zero_filled)
            consistent = _replaced(consistency, sampling, 1)
            return _Plan(first, process.sigma_max, schedule, "both", consistent)
        known = KnownStart.of(data)
        if known is None:
            first = temporal_sense(consistency)
            level = sampling.start_noise or start_noise(consistency, first)
        else:
            first, (level, last) = known.image, known.levels
            level = sampling.start_noise or level
            process = replace(process, sigma_min=min(max(last, process.sigma_min), process.sigma_max / 2))
        # at least one octave of noise levels, all of which the network knows
        process = replace(process, sigma_max=min(max(level, 2 * process.sigma_min), process.sigma_max))
        steps = sampling.steps or (_STEPS if known is None else _STEPS_FROM_KNOWN)[sampling.sampler]
        schedule = Schedule.of_levels(process, steps)
        if known is None:
            repetitions = _REPETITIONS if process.sigma_max > _POOR_START else 1
            consistent = _replaced(consistency, sampling, repetitions)
            return _Plan(first, process.sigma_max, schedule, "alternating", consistent)
        iterations = sampling.consistency_iterations or _CONSISTENCY_ITERATIONS

        def compromise(image: torch.Tensor) -> torch.Tensor:
            return _where_seen(consistency, consistency.solve(image, known.weight, iterations))

        return _Plan(first, process.sigma_max, schedule, "alternating", compromise, quiet=True)


class _Plan(NamedTuple):
    first: torch.Tensor  # image (frame, y, x) to which the noise of the first level is added
    level: float
    schedule: Schedule
    directions: Directions
    consistent: Callable[[torch.Tensor], torch.Tensor]
    quiet: bool = False  # without noise the image is nearer to the truth than any draw, and than the mean of a few


def _replaced(
    consistency: DataConsistency, sampling: DSTDMOptions, repetitions: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What puts measured samples back, or solves for an image that has them."""

    def consistent(image: torch.Tensor) -> torch.Tensor:
        if sampling.consistency_iterations:
            return _where_seen(consistency, consistency.solve(image, 0.0, sampling.consistency_iterations))
        for _ in range(sampling.consistency_repetitions or repetitions):
            image = consistency.hard(image)
        return image

    return consistent


def _where_seen(consistency: DataConsistency, image: torch.Tensor) -> torch.Tensor:
    """The image where coils see it: noise would stand where the data say nothing."""
    return torch.where(consistency.intensity > 0, image, 0)


def _mean_and_deviation(images: Iterable[torch.Tensor]) -> Samples:
    """Of one image or more, none of which is kept."""
    mean = torch.empty(0)
    squares = torch.empty(0)
    count = 0
    for count, image in enumerate(images, 1):
        if count == 1:
            mean, squares = image, torch.zeros_like(image.real)
            continue
        change = image - mean
        mean = mean + change / count
        squares += (change.conj() * (image - mean)).real
    return Samples(mean, (squares / (count - 1)).sqrt() if count > 1 else None)
