"""Measure on a GPU, in stages that write each result as it comes: ``python -m tests.bench.gpu --out FOLDER``.

``FOLDER/results.jsonl`` gets a line for every figure and ``FOLDER/results.md`` the tables. The stages run in order of
importance until ``--minutes`` are over; with the same folder the next run goes on with what is missing. Names of stages
limit it to these. What fails is noted, and the rest goes on. ``--device cpu --tiny`` runs all of it on small arrays and
networks, which shows that it works and measures nothing. Not a test: a loaded machine would fail it without a fault of
the code.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import recon_core  # noqa: F401 - before torch, for the settings that it makes for it

# isort: split
import torch

from gadgets.simulation import ScanPlan, simulate
from recon_core.coils.estimate import estimate_maps
from recon_core.data import CineSlice, HybridSlice
from recon_core.engine import Engine
from recon_core.errors import ModelError
from recon_core.inference import method as inference
from recon_core.inference import trained
from recon_core.inference.precision import precision_of_convolutions
from recon_core.inference.start import with_start
from recon_core.options import MapOptions, NetworkOptions, ReconOptions
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft
from recon_core.physics.kernels import choose_kernels
from recon_core.physics.sense import SenseOperator
from recon_core.weights.config import build_network
from recon_core.weights.manifest import WeightsEntry
from tests.bench import networks, realtime, stream
from tests.helpers.networks import NETWORKS, TINY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Figures = dict[str, Any]
    #: A name that is known again by the next run, and what measures.
    Measurement = tuple[str, Callable[[], Figures]]

PRECISIONS = ("float32", "tf32", "bfloat16")
#: The image that networks start from, as the packaged ones do.
START = "kt_sense"
#: In their order: what most depends on comes first.
ORDER = (
    "crunet_mr",
    "cinenet",
    "unet3d_mr",
    "crnn_mri",
    "unrolled_resnet3d",
    "dual_unet_resnet3d",
    "atlf_net",
    "cst_net",
)


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where to measure, and how much."""

    device: torch.device
    tiny: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Frames, coils, ky and x of a slice."""
        return (4, 3, 16, 16) if self.tiny else (25, 10, 208, 256)

    @property
    def repeats(self) -> int:
        return 1 if self.tiny else 5

    def slice(self) -> HybridSlice:
        """A slice on the device."""
        data = networks.scan(*self.shape, varied=True)
        fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
        return HybridSlice(**{k: v.to(self.device) if torch.is_tensor(v) else v for k, v in fields.items()})

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], object], repeats: int | None = None) -> float:
        """Median time of a call, after one for warming up."""
        function()
        taken = []
        for _ in range(repeats or self.repeats):
            self.synchronise()
            started = time.perf_counter()
            function()
            self.synchronise()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    @contextmanager
    def peak(self) -> Iterator[Figures]:
        """Most memory that torch held in between, in GiB."""
        found: Figures = {}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        yield found
        if self.device.type == "cuda":
            found["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"some of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small arrays and networks, to try the stages")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="begin nothing after this time (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of the results")
    options = parser.parse_args(arguments)
    bench = Bench(torch.device(options.device), options.tiny)
    run(bench, options.stages or list(STAGES), options.out, time.monotonic() + 60 * options.minutes)


def run(bench: Bench, stages: list[str], folder: Path, until: float) -> None:
    """Measure what the folder does not have yet."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(row["stage"], row["what"]) for row in rows if "error" not in row}
    for stage in stages:
        for what, measure in STAGES[stage](bench):
            if (stage, what) in known:
                continue
            if time.monotonic() > until:
                print("the time is over; the same command goes on from here")
                return
            started = time.perf_counter()
            try:
                figures = measure()
            except Exception as error:  # noqa: BLE001 - the other figures are worth the rest of the time
                figures = {"error": f"{type(error).__name__}: {error}"[:300]}
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
            row = {"stage": stage, "what": what, **figures, "took s": round(time.perf_counter() - started, 2)}
            rows = [one for one in rows if (one["stage"], one["what"]) != (stage, what)] + [row]
            with path.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            (folder / "results.md").write_text(tables(rows))
            print(json.dumps(row), flush=True)


def tables(rows: list[Figures]) -> str:
    """One table per stage."""
    parts = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        some = [{key: value for key, value in row.items() if key != "stage"} for row in rows if row["stage"] == stage]
        columns = list(dict.fromkeys(key for row in some for key in row))
        lines = [columns, ["---"] * len(columns), *([str(row.get(key, "")) for key in columns] for row in some)]
        parts.append(f"## {stage}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)


# --- the machine, and data consistency --------------------------------------------------------------------------------


def machine(bench: Bench) -> Iterator[Measurement]:
    """Versions, and the roofs of copies."""

    def versions() -> Figures:
        found: Figures = {"torch": torch.__version__, "threads": torch.get_num_threads(), "shape": list(bench.shape)}
        if bench.device.type == "cuda":
            query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
            found["card"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
            found["cudnn"] = torch.backends.cudnn.version()
        return found

    def upload(pinned: bool) -> Figures:
        source = torch.zeros(bench.shape, dtype=torch.complex64)
        source = source.pin_memory() if pinned else source
        taken = bench.seconds(lambda: source.to(bench.device, non_blocking=pinned, copy=True))
        return {"ms": round(1e3 * taken, 3), "GB/s": round(source.numel() * 8 / taken / 1e9, 2)}

    yield "versions", versions
    yield "copy on the device", lambda: {"GB/s": round(roof(bench) / 1e9, 1)}
    yield "upload of a slice, as it is", partial(upload, False)
    if bench.device.type == "cuda":
        yield "upload of a slice, pinned", partial(upload, True)


def roof(bench: Bench) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.rand(1 << (14 if bench.tiny else 28), device=bench.device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / bench.seconds(lambda: target.copy_(source), 3 * bench.repeats)


def consistency(bench: Bench) -> Iterator[Measurement]:
    """Data consistency, and its share of what a copy reaches."""

    @torch.inference_mode()
    def measure(implementation: str, pattern: str, mebibytes: int | None) -> Figures:
        data = bench.slice()
        n_frames, n_coils, n_y, n_x = bench.shape
        mask = data.mask
        if pattern == "regular":
            mask = (
                torch.arange(n_y, device=bench.device) + torch.arange(n_frames, device=bench.device)[:, None]
            ) % 4 == 0
        workspace = None if mebibytes is None else mebibytes << 20
        tested = DataConsistency(data.maps, mask, data.hybrid, implementation=implementation, workspace_bytes=workspace)
        image = tested.zero_filled
        assert isinstance(tested.operator, SenseOperator)
        normal = bench.seconds(lambda: tested.operator.normal(image), 3 * bench.repeats)
        figures = {"A^H A ms": round(1e3 * normal, 4)}
        figures["hard ms"] = round(1e3 * bench.seconds(lambda: tested.hard(image), 3 * bench.repeats), 4)
        if pattern == "random":
            # Coil images: written, read and written by both transforms, masked, reduced; as in tests.bench.consistency.
            passes = 1 + 4 + (2 + 3 if implementation == "torch" else 0.75 + 1)
            least = 8 * n_frames * n_y * n_x * (passes * n_coils + 2) + 16 * n_coils * n_y * n_x
            figures["share of a copy"] = round(least / normal / roof(bench), 3)
        return figures

    for implementation in ("torch", "cupy"):
        try:
            choose_kernels(implementation, bench.device)
        except ModelError:
            continue
        for pattern, mebibytes in (("random", None), ("regular", None), ("random", 32), ("random", 512)):
            size = "" if mebibytes is None else f", workspace {mebibytes} MiB"
            yield f"{implementation}, {pattern}{size}", partial(measure, implementation, pattern, mebibytes)


# --- networks ---------------------------------------------------------------------------------------------------------


def network_method(name: str, bench: Bench, precision: str) -> inference.NetworkMethod:
    """An untrained network of published width, as the engine runs it: started, windows and memory plan included."""
    torch.manual_seed(0)
    config = (
        {key: str(value) for key, value in TINY[name].items() if not isinstance(value, tuple)} if bench.tiny else {}
    )
    network = build_network(name, config if bench.tiny or name != "atlf_net" else {"ct_dropout": "true"})
    network = network.eval().requires_grad_(False)
    entry = WeightsEntry(method=name, name="untrained", file=Path("none"), sha256="0" * 64, start=START)
    own = ReconOptions.of(**({"sampler_steps": 2} if bench.tiny else {})).of_method(name)
    with (
        patch.object(inference, "find_weights", return_value=entry),
        patch.object(trained, "load_network", lambda *_: network),
    ):
        return inference.NetworkMethod(name, NetworkOptions(precision=precision), own)


def network_slices(bench: Bench) -> Iterator[Measurement]:
    """A slice through every network, in every precision, with the error to float32."""
    exact: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def measure(name: str, precision: str) -> Figures:
        data = with_start(bench.slice(), START)
        if precision != "float32" and name not in exact:
            exact[name] = network_method(name, bench, "float32")(data).cpu()
        method = network_method(name, bench, precision)
        with bench.peak() as figures:
            image = method(data).cpu()
            heavy = name in {"dstdm", "promptmr"}
            taken = bench.seconds(lambda: method(data), 1 if heavy else bench.repeats)
        if precision == "float32":
            exact[name] = image
        error = float((image - exact[name]).norm() / exact[name].norm())
        figures |= {"ms per slice": round(1e3 * taken, 2), "ms per frame": round(1e3 * taken / bench.shape[0], 3)}
        figures["error to float32"] = f"{error:.1e}"
        windows = [note for note in data.notes if "window" in note]
        return figures | ({"windows": windows[0]} if windows else {})

    names = [*ORDER, *(name for name in NETWORKS if name not in ORDER)]
    for name in names:
        for precision in PRECISIONS:
            if bench.device.type == "cuda" or precision != "tf32":
                yield f"{name}, {precision}", partial(measure, name, precision)


def published(bench: Bench) -> Iterator[Measurement]:
    """Against transcriptions of the published forward passes, both with the same weights in one run."""
    original = networks.scan

    def full_size(n_frames: int, n_coils: int, *_: int, **more: bool) -> HybridSlice:
        return original(n_frames, n_coils, *bench.shape[2:], **more)

    @torch.inference_mode()
    def measure(name: str, *, large: bool) -> Figures:
        with (
            torch.device(bench.device),
            precision_of_convolutions("float32", bench.device),
            patch.object(networks, "scan", full_size if large else original),
            patch.object(networks, "synchronise", bench.synchronise),
        ):
            return {f"{row[0]}, {row[1]}": " ".join(row[2:]) for row in networks.MEASUREMENTS[name]()}

    for large in (True, False):
        for name in networks.MEASUREMENTS:
            where = "size of the slice" if large else "size of the CPU table"
            yield f"{name}, {where}", partial(measure, name, large=large)


# --- methods, server, real time, training -----------------------------------------------------------------------------


def methods(bench: Bench) -> Iterator[Measurement]:
    """Methods without training, and coil maps, through the engine."""
    engine = Engine(bench.device.type)

    def cine() -> CineSlice:
        data = networks.scan(*bench.shape, varied=True)
        return CineSlice(fft(data.hybrid, (-1,)).numpy(), data.mask.numpy())

    def measure(name: str, kind: str) -> Figures:
        options = ReconOptions.of(method=name, maps=kind, fallback="none")
        data = cine()
        engine.reconstruct(data, options)
        with bench.peak() as figures:
            results = [engine.reconstruct(data, options).seconds for _ in range(bench.repeats)]
        taken = {stage: statistics.median(one[stage] for one in results) for stage in ("maps", "reconstruct")}
        per_frame = 1e3 * taken["reconstruct"] / bench.shape[0]
        return {
            "upload and maps ms": round(1e3 * taken["maps"], 2),
            "method ms": round(1e3 * taken["reconstruct"], 2),
            "method, ms per frame": round(per_frame, 3),
            **figures,
        }

    @torch.inference_mode()
    def maps(kind: str) -> Figures:
        data = bench.slice()
        options = MapOptions(kind=kind)
        taken = bench.seconds(lambda: estimate_maps(data.reference, data.measured, options))
        return {"maps ms": round(1e3 * taken, 2)}

    for name in ("kt_sense", "cg_sense", "low_rank_sparse", "grappa"):
        yield name, partial(measure, name, "auto")
    for kind in ("auto", "espirit", "walsh", "inati"):
        yield f"maps={kind}", partial(maps, kind)


def server(bench: Bench) -> Iterator[Measurement]:
    """From the last readout sent to the last image received, by a client of the resident server."""
    n_frames, coils, n_y, n_x = bench.shape
    plan = ScanPlan(matrix_x=n_x, matrix_y=n_y, coils=coils, frames=n_frames, acceleration=4, acs_lines=n_y // 8)

    def measure(pipeline: str) -> Figures:
        scan, waits = simulate(plan), []
        with stream.RunningServer(Engine(bench.device.type)) as address:
            for _ in range(bench.repeats + 1):
                sent, arrived = stream._scan(address, scan, pipeline)
                waits.append(arrived[-1] - sent[-1][1])
        return {"first scan ms": round(1e3 * waits[0], 1), "then ms": round(1e3 * statistics.median(waits[1:]), 1)}

    for pipeline in ("kt_sense", "cg_sense", "crunet_mr", "cinenet"):
        yield pipeline, partial(measure, pipeline)


def real_time(bench: Bench) -> Iterator[Measurement]:
    """Latency of a frame from its last readout, on the clock of a scanner of 40 ms per frame."""
    n_frames = 12 if bench.tiny else 200
    matrix, coils = (32, 2) if bench.tiny else (realtime.MATRIX, realtime.COILS)

    def measure(method: str, mode: str) -> Figures:
        scan, engine = simulate(realtime.plan_of(n_frames, matrix, coils)), Engine(bench.device.type)
        settings = {"method": method, "realtime": mode, "realtime_window": 8, "outside_range": "note"}
        for _ in range(2):  # the first warms up
            latency, work = realtime.measure(scan.header, scan.items(), engine, settings, time.perf_counter, matrix)
        after = sorted(latency[realtime.ACCELERATION :])
        return {
            "median ms": round(1e3 * statistics.median(after), 2),
            "99 % ms": round(1e3 * after[int(0.99 * (len(after) - 1))], 2),
            "work ms per frame": round(1e3 * work / n_frames, 2),
        }

    for method in ("cg_sense", "kt_sense"):
        for mode in ("sliding", "fixed"):
            yield f"{method}, {mode}", partial(measure, method, mode)


def training(bench: Bench) -> Iterator[Measurement]:
    """Steps per second of the forward pass, the gradient and AdamW, with the data on the device already."""

    def measure(name: str, precision: str) -> Figures:
        config = {key: str(value) for key, value in TINY[name].items()} if bench.tiny else {}
        network = build_network(name, config).train().to(bench.device)
        optimiser = torch.optim.AdamW(network.parameters(), 1e-4)
        frames, coils, n_y, n_x = (4, 3, 16, 16) if bench.tiny else (12, 10, 208, 64)
        with patch.object(Bench, "shape", (frames, coils, n_y, n_x)):
            crop = bench.slice()

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            with precision_of_convolutions(precision, bench.device):
                image = network.reconstruct(crop)
            torch.view_as_real(image - crop.hybrid[:, 0]).square().mean().backward()
            optimiser.step()

        with bench.peak() as figures:
            taken = bench.seconds(step)
        return {"steps per second": round(1 / taken, 2), **figures}

    for name in ("crunet_mr", "cinenet", "unet3d_mr"):
        for precision in ("float32", "bfloat16"):
            yield f"{name}, {precision}", partial(measure, name, precision)


def variants(bench: Bench) -> Iterator[Measurement]:
    """What might be switched on, if it helps: the choice of convolutions by trial."""

    @torch.inference_mode()
    def measure(name: str, *, by_trial: bool) -> Figures:
        data, method = bench.slice(), network_method(name, bench, "bfloat16")
        torch.backends.cudnn.benchmark = by_trial
        try:
            started = time.perf_counter()
            method(data)
            bench.synchronise()
            first = time.perf_counter() - started
            return {"first s": round(first, 2), "ms per slice": round(1e3 * bench.seconds(lambda: method(data)), 2)}
        finally:
            torch.backends.cudnn.benchmark = False

    for name in ("crunet_mr", "cinenet", "cst_net"):
        for by_trial in (False, True):
            yield f"{name}, bfloat16, cudnn.benchmark={by_trial}", partial(measure, name, by_trial=by_trial)


STAGES: dict[str, Callable[[Bench], Iterator[Measurement]]] = {
    "machine": machine,
    "consistency": consistency,
    "methods": methods,
    "networks": network_slices,
    "server": server,
    "published": published,
    "realtime": real_time,
    "training": training,
    "variants": variants,
}


if __name__ == "__main__":
    main()
