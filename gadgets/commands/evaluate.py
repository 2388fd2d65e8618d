"""``cinestream evaluate``: measure image files against the truth of their scan, or methods on held-out scans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gadgets.commands.arguments import folder
from gadgets.commands.console import say
from recon_core.errors import SettingsError
from recon_core.storage import refuse_missing_folder

if TYPE_CHECKING:
    import argparse

NAME = "evaluate"
HELP = "measure image files against the truth of their scan, or methods on held-out scans"
EXAMPLES = """\
cinestream evaluate images.h5 --truth scan_truth.npz
cinestream evaluate --suite standard"""

_OF_FILES = ("outputs", "truth", "slices", "gif", "csv", "dists_weights", "group")
_OF_SUITE = ("methods", "data", "quick", "json", "fresh", "picture")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of both uses; `run` refuses a mixture."""
    text = "write an HTML page with loops, errors, temporal profiles and scores"
    parser.add_argument("--report", type=Path, metavar="FILE", help=text)

    files = parser.add_argument_group("image files against the truth of their scan")
    text = "image file that replay or send wrote; several are compared side by side"
    files.add_argument("outputs", type=Path, nargs="*", metavar="output", help=text)
    text = "truth of the scan: .npz with 'image' or 'reference' (slice, frame, y, x)"
    files.add_argument("--truth", type=Path, metavar="FILE", help=text)
    files.add_argument("--slices", action="store_true", help="print the scores of every slice too")
    text = "write a looped GIF of what moves: all side by side, and the errors of the last one"
    files.add_argument("--gif", type=Path, metavar="FILE", help=text)
    files.add_argument("--csv", type=Path, metavar="FILE", help="write the scores as CSV")
    text = "measure DISTS too, with these weights (.safetensors: VGG-16 features.*, alpha, beta; not included)"
    files.add_argument("--dists-weights", type=Path, metavar="FILE", help=text)
    files.add_argument("--group", default="", help="HDF5 group of the images (default: dataset)")

    suite = parser.add_argument_group("methods on held-out scans, which are made on the way")
    text = "run a suite: all methods that can run, under six samplings, on scans that no training has seen"
    suite.add_argument("--suite", choices=("standard",), help=text)
    text = (
        "only these methods, or variants, which are compared with them where every 8th line is measured: dstdm/paper "
        "(published sampler, on one scan of each part), atlf_net/ct (with a CT), atlf_net/ct_shifted (8 mm off)"
    )
    suite.add_argument("--methods", default="", metavar="A,B", help=text)
    text = "folder with scd_cine (Sunnybrook Cardiac Data as npz; the held-out patient is used) and semi_real_cine"
    suite.add_argument("--data", type=folder, metavar="DIR", help=text)
    suite.add_argument("--quick", action="store_true", help="one scan of each part, and only the samplings with R = 8")
    text = "keep every number here; a later call computes only what is missing"
    suite.add_argument("--json", type=Path, metavar="FILE", help=text)
    suite.add_argument("--fresh", action="store_true", help="start the file of --json again")
    text = "draw a still figure: truth and methods, their errors, temporal profiles (PNG)"
    suite.add_argument("--picture", type=Path, metavar="FILE", help=text)


def run(options: argparse.Namespace) -> int:
    """Measure files or methods."""
    given = {name: getattr(options, name) for name in (*_OF_FILES, *_OF_SUITE)}
    unwanted = [_spelled(name) for name in (_OF_FILES if options.suite else _OF_SUITE) if given[name]]
    if options.suite:
        if unwanted:
            raise SettingsError(f"--suite makes its own scans and images; it does not go with {', '.join(unwanted)}")
        return _evaluate_suite(options)
    if unwanted:
        raise SettingsError(f"{', '.join(unwanted)} belongs to --suite standard; give that instead of image files")
    if not options.outputs or not options.truth:
        raise SettingsError("expected image files and --truth FILE, or --suite standard")
    return _evaluate_files(options)


def _spelled(name: str) -> str:
    return "image files" if name == "outputs" else "--" + name.replace("_", "-")


def _evaluate_suite(options: argparse.Namespace) -> int:
    from gadgets.evaluation.suite import run_suite, table
    from gadgets.reports.suite import write_picture, write_suite_page

    for path in filter(None, (options.report, options.picture, options.json)):
        refuse_missing_folder(path)  # better known now than in an hour
    if options.fresh and not options.json:
        raise SettingsError("--fresh starts the file of --json again; give that too")
    outcome = run_suite(
        [name for name in options.methods.split(",") if name],
        data=options.data,
        quick=options.quick,
        stored=options.json,
        fresh=options.fresh,
        images=bool(options.report or options.picture),
    )
    say(table(outcome))
    if options.json:
        say(f"every number in {options.json}")
    if options.report:
        write_suite_page(options.report, outcome)
        say(f"report in {options.report}")
    if options.picture:
        write_picture(options.picture, outcome)
        say(f"figure in {options.picture}")
    return 0


def _evaluate_files(options: argparse.Namespace) -> int:
    from gadgets.evaluation import images as evaluate
    from gadgets.reports.evaluation import write_gif, write_page

    sources = [path for path in (*options.outputs, options.truth) if path.exists()]
    for path in filter(None, (options.report, options.gif, options.csv)):
        refuse_missing_folder(path)
        if path.exists() and any(map(path.samefile, sources)):
            raise SettingsError(f"{path} is one of the files to read; choose another one to write")
    dists = None
    if options.dists_weights:
        from recon_core.metrics.dists import load_dists

        dists = load_dists(options.dists_weights)
    evaluations, truth = evaluate.evaluate(options.outputs, options.truth, options.group or "dataset", dists)
    say(evaluate.table(evaluations, slices=options.slices))
    if options.csv:
        evaluate.write_csv(options.csv, evaluations)
        say(f"scores in {options.csv}")
    if options.gif:
        write_gif(options.gif, evaluations, truth)
        say(f"loop in {options.gif}")
    if options.report:
        write_page(options.report, evaluations, truth, options.truth.name)
        say(f"report in {options.report}")
    return 0
