"""Measure the coil maps against BART, both sides of every ratio in one run: ``python -m tests.bench.coils``.

Prints two tables; the first is of our own kinds of maps side by side, which ``python -m tests.bench.coils --kinds``
stops after. BART is a program: its time includes its start and its files, which `bart copy` of the same k-space
measures on its own.
"""

from __future__ import annotations

import functools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import recon_core  # noqa: F401 - before torch, for the settings that it makes for it

# isort: split
import torch

from recon_core.coils.compression import CoilCompression
from recon_core.coils.espirit import espirit_maps
from recon_core.coils.estimate import ESTIMATORS
from recon_core.coils.inati import inati_maps
from recon_core.coils.walsh import walsh_maps
from recon_core.options import MapOptions
from recon_core.physics.fourier import fft, ifft
from recon_core.simulate.coils import coil_maps
from recon_core.simulate.phantom import beating_thorax

READOUT, PHASE, FOV_MM = 448, 204, (300.0, 380.0)
CASES, REPEATS = ((10, 1), (10, 2), (32, 1)), 3  # coils, threads
SLICE = (156, 192)  # what the kinds of maps are compared on, with every 4th line and 24 central ones


def main() -> None:
    print(f"Coil maps of one slice of {SLICE[0]} x {SLICE[1]} pixels, best of {REPEATS}; wall time (CPU time) in ms.\n")
    print("| coils | threads | " + " | ".join(ESTIMATORS) + " |")
    print("|---|---|" + "---|" * len(ESTIMATORS))
    for n_coils, n_threads in CASES:
        print(f"| {n_coils} | {n_threads} | " + " | ".join(kinds(n_coils, n_threads)) + " |", flush=True)
    if "--kinds" in sys.argv[1:]:
        return
    print()
    bart = shutil.which("bart")
    if bart is None:
        print("bart is not installed; only our own times are measured", file=sys.stderr)
    print(f"Coil maps of {PHASE} x {READOUT} pixels, best of {REPEATS}; wall time (CPU time) in ms.\n")
    print("| coils | threads | what | cinestream | BART | BART / ours, wall | CPU | 1 - correlation: mean, max |")
    print("|---|---|---|---|---|---|---|---|")
    for n_coils, n_threads in CASES:
        kspace, inside = scan(n_coils)
        for row in rows(bart, kspace, inside, n_threads):
            print(f"| {n_coils} | {n_threads} | " + " | ".join(row) + " |", flush=True)


def kinds(n_coils, n_threads):
    """Times of every kind of maps, in turns."""
    torch.set_num_threads(n_threads)
    kspace, _ = scan(n_coils, SLICE)
    measured = torch.zeros(SLICE[0], dtype=torch.bool)
    measured[2::4] = True
    measured[SLICE[0] // 2 - 12 : SLICE[0] // 2 + 12] = True
    lines, options = ifft(kspace, (-1,)) * measured[:, None], MapOptions()
    times = {kind: [] for kind in ESTIMATORS}
    with torch.inference_mode():
        for _ in range(REPEATS):
            for kind, estimate in ESTIMATORS.items():
                call = functools.partial(estimate, lines, measured, options)
                times[kind].append(timed(call, resource.RUSAGE_SELF))
    return [shown(each) for each in times.values()]


def rows(bart, kspace, inside, n_threads):
    torch.set_num_threads(n_threads)
    lines, measured = ifft(kspace, (-1,)), torch.ones(PHASE, dtype=torch.bool)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_cfl(Path(folder, "kspace"), kspace.numpy().transpose(2, 1, 0)[:, :, None])
        environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads)}

        def program(*arguments):
            subprocess.run([bart, *arguments], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)

        for sets in (1, 2):
            name = f"ESPIRiT, kernel 6, block 24, {sets} set(s)"
            ours, theirs = [], []
            for _ in range(REPEATS):  # in turns, so that a change of the machine's mood meets all alike
                ours.append(timed(lambda sets=sets: espirit_maps(lines, measured, sets=sets), resource.RUSAGE_SELF))
                if bart:
                    call = ("ecalib", f"-m{sets}", "-r24", "-k6", "kspace", "maps", "values")
                    theirs.append(timed(lambda call=call: program(*call), resource.RUSAGE_CHILDREN))
            agreement = "-"
            if bart:
                expected = torch.tensor(read_cfl(Path(folder, "maps")).transpose(2, 1, 0))
                maps = espirit_maps(lines, measured, sets=sets)[0][0]
                lost = (1 - (maps.conj() * expected).sum(0).abs()[inside]).clamp(min=0)
                agreement = f"{float(lost.mean()):.0e}, {float(lost.max()):.0e}"
            yield name, *compared(ours, theirs), agreement
        if bart:
            copies = [
                timed(lambda: program("copy", "kspace", "copy"), resource.RUSAGE_CHILDREN) for _ in range(REPEATS)
            ]
            yield "start and files of BART alone", "-", shown(copies), "-", "-", "-"
        for name, method in (("Walsh, all lines", walsh_maps), ("Inati, all lines", inati_maps)):
            times = [timed(lambda method=method: method(lines, measured), resource.RUSAGE_SELF) for _ in range(REPEATS)]
            yield name, *compared(times, []), "-"

        readouts = kspace[:, PHASE // 2 - 12 : PHASE // 2 + 12].movedim(1, 0).numpy()

        def compress():
            compression = CoilCompression(len(kspace))
            compression.add(readouts)
            return compression.matrix(coils=6) @ readouts

        times = [timed(compress, resource.RUSAGE_SELF) for _ in range(REPEATS)]
        yield "compression to 6, from 24 lines", *compared(times, []), "-"


def scan(n_coils, shape=(PHASE, READOUT)):
    """One noisy frame, fully sampled ``(coil, ky, kx)``, and where the body is."""
    image = torch.tensor(beating_thorax([0.1], shape, FOV_MM)[0])
    kspace = fft(image * torch.tensor(coil_maps(n_coils, shape, FOV_MM)), (1, 2))
    strength = image.abs()
    noise = torch.randn(kspace.shape, dtype=kspace.dtype, generator=torch.Generator().manual_seed(0))
    return kspace + 0.005 * strength.max() * noise, strength > 0.05 * strength.max()


def timed(call, who):
    """Wall and CPU seconds."""
    before, start = resource.getrusage(who), time.perf_counter()
    call()
    wall, after = time.perf_counter() - start, resource.getrusage(who)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compared(ours, theirs):
    if not theirs:
        return shown(ours), "-", "-", "-"
    wall, cpu = (best(theirs, which) / best(ours, which) for which in (0, 1))
    return shown(ours), shown(theirs), f"{wall:.1f}x", f"{cpu:.1f}x"


def shown(times):
    return f"{1e3 * best(times, 0):.0f} ({1e3 * best(times, 1):.0f})"


def best(times, which):
    return min(each[which] for each in times)


def write_cfl(path, array):
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(str(size) for size in array.shape) + "\n")
    np.asarray(array, np.complex64).ravel("F").tofile(path.with_suffix(".cfl"))


def read_cfl(path):
    sizes = [int(size) for size in path.with_suffix(".hdr").read_text().splitlines()[1].split()]
    array = np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape((*sizes[:4], -1), order="F")
    return array[:, :, 0, :, 0]  # one slice, the first set of maps


if __name__ == "__main__":
    main()
