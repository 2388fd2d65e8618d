"""The command line: ``cinestream replay``, ``serve``, ``send``, ``simulate``, ``evaluate`` and what helps them."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import os
import signal
import sys
import threading
import typing
from pathlib import Path
from typing import TYPE_CHECKING

from gadgets import __version__
from gadgets.connection.server import DEFAULT_HOST, DEFAULT_PORT, Server, SharedEngine
from gadgets.connection.session import SessionOptions
from gadgets.preparation.noise_store import DAYS, ENTRIES, NoiseStore, default_folder
from gadgets.settings.pipelines import find_pipeline, install_pipelines, list_pipelines, parse_configuration
from gadgets.settings.settings import Settings, apply, describe_settings, parse_assignments
from recon_core.errors import CinestreamError, ResourceError, SettingsError
from recon_core.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gadgets.export.targets import ExportTargets
    from gadgets.preparation.noise import KnownNoise
    from gadgets.problems import Problems

logger = logging.getLogger("cinestream")

_DESCRIPTION = """\
Streaming reconstruction of cine cardiac MRI from ISMRMRD raw data.

  cinestream simulate scan.h5                               make a beating-heart scan with its truth
  cinestream replay scan.h5 -p cg_sense -o images.h5        reconstruct a raw file
  cinestream export images.h5 --dicom DIR --mp4 loop.mp4    make DICOM, NIfTI or a film of images
  cinestream serve                                          run the resident server for Gadgetron or FIRE
  cinestream evaluate images.h5 --truth scan_truth.npz      measure images against the truth
  cinestream evaluate --suite standard                      measure the methods on held-out scans
  cinestream import-weights crnn_mri FILE                   bring trained weights for a network
  cinestream doctor scan.h5                                 look through a raw file before it is reconstructed
  cinestream convert cine_sax.mat scan.h5                   make a raw file of CMRxRecon or fastMRI k-space
  cinestream send scan.h5 -c cg_sense -o images.h5          be the scanner: send a file, keep the images
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        0 if all that was asked for was done, 1 if not, 2 for a wrong call.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    level = logging.WARNING if not options.verbose else logging.DEBUG if options.verbose > 1 else logging.INFO
    logging.basicConfig(level=max(level, logging.INFO), format="%(levelname)s %(message)s", stream=sys.stderr)
    logger.setLevel(level)
    try:
        return int(options.run(options))
    except SettingsError as error:
        _say(f"cinestream: {error}", error=True)
        return 2
    except CinestreamError as error:
        _say(f"cinestream: {error}", error=True)
        return 1
    except BrokenPipeError:  # the reader of our output left, as `head` does; the flush at exit must not fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _say(text: str, *, error: bool = False) -> None:
    stream = sys.stderr if error else sys.stdout
    stream.write(text + "\n")
    stream.flush()


# --- commands ---------------------------------------------------------------------------------------------------------


def _replay(options: argparse.Namespace) -> int:
    from gadgets.files.raw import refuse_same_file
    from gadgets.replay import replay

    settings = _settings(options)
    targets = _export_targets(options, options.input)
    wanted = [path for path in (options.gif, options.report, options.truth) if path]
    for path in (options.gif, options.report):
        if path:
            refuse_same_file(options.input, path)
    collector, truth = None, None
    if wanted:
        from gadgets.reports.record import ReportCollector
        from gadgets.reports.scan import write_gif, write_report
        from recon_core.metrics import scores

        collector = ReportCollector()
        truth = scores.read_truth(options.truth) if options.truth else None
    header, summary = replay(
        options.input,
        options.output,
        settings,
        SharedEngine(),
        group=options.group,
        overwrite=options.overwrite,
        collector=collector,
        noise=_noise_of(options.noise) if options.noise else None,
        noise_store=_noise_store(options) if options.noise_store else None,
    )
    _say(f"{summary.images} images of {summary.slices} slices in {options.output}")
    if collector is not None:
        if truth is not None:
            found = scores.score(collector.series(), truth)
            _say("against the truth: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
        if options.gif:
            write_gif(options.gif, collector, truth)
            _say(f"loop in {options.gif}")
        if options.report:
            write_report(options.report, collector, header, settings, summary, truth, options.input.name)
            _say(f"report in {options.report}")
    if targets and summary.images:
        _export_to(targets, options.output, options.group, summary.problems)
    return 1 if summary.problems.damage else 0


def _export(options: argparse.Namespace) -> int:
    from gadgets.files.raw import open_scan
    from gadgets.problems import Problems

    targets = _export_targets(options, options.images)
    if not targets:
        raise SettingsError("expected at least one of --dicom DIR, --nifti FILE or DIR, --mp4 FILE")
    header = ""
    if options.scan:
        with open_scan(options.scan, options.group) as scan:
            header = scan.header
    problems = Problems()
    _export_to(targets, options.images, options.group, problems, header)
    return 1 if problems.damage else 0


def _export_targets(options: argparse.Namespace, source: Path) -> ExportTargets:
    """What is to be exported; refused at once where it could not be written."""
    from gadgets.export.targets import ExportTargets
    from gadgets.files.raw import refuse_same_file

    for path in filter(None, (options.dicom, options.nifti, options.mp4)):
        refuse_same_file(source, path)
    targets = ExportTargets(
        dicom=options.dicom,
        dicom_kind=options.dicom_kind,
        nifti=options.nifti,
        mp4=options.mp4,
        overwrite=options.overwrite,
    )
    targets.check()
    return targets


def _export_to(targets: ExportTargets, images: Path, group: str, problems: Problems, header: str = "") -> None:
    from gadgets.export.targets import export_images

    for line in export_images(images, group, targets, problems, header):
        _say(line)


def _noise_of(text: str) -> KnownNoise:
    """Read the noise of FILE or FILE:GROUP."""
    from gadgets.preparation.noise import read_noise

    path, colon, group = text.rpartition(":")
    if not colon or Path(text).exists():
        path, group = text, "dataset"
    return read_noise(Path(path), group)


def _noise_store(options: argparse.Namespace) -> NoiseStore | None:
    """The store that the options name; that of this user where they name none, if there is a home."""
    if options.noise_store == "off":
        return None
    try:
        folder = Path(options.noise_store) if options.noise_store else default_folder()
    except ResourceError as error:
        logger.warning("noise is not kept from scan to scan: %s", error)
        return None
    return NoiseStore(folder, options.noise_days, options.noise_entries)


def _serve(options: argparse.Namespace) -> int:
    session = SessionOptions(
        pipelines=tuple(options.pipelines),
        aliases=parse_assignments(options.alias),
        overrides=parse_assignments(options.set),
        save_raw=options.save_raw,
        queue_bytes=int(options.queue_gib * (1 << 30)),
        ct_folders=tuple(options.ct_folder),
        noise_store=_noise_store(options),
    )
    for name in session.aliases.values():
        find_pipeline(name, session.pipelines)
    apply(Settings(), session.overrides)
    server = Server(options.host, options.port, session)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    thread = threading.Thread(target=server.serve, name="cinestream-accept")
    thread.start()
    _say(f"cinestream {__version__} listens on {server.address[0]} port {server.address[1]}")
    while thread.is_alive() and not stop.wait(0.2):
        pass
    server.stop(options.grace)
    thread.join()
    return 0


def _send(options: argparse.Namespace) -> int:
    from gadgets.connection.client import send
    from gadgets.wire.messages import ConfigFile, ConfigText

    config = ConfigText(_read_text(options.config_file)) if options.config_file else ConfigFile(options.config)
    result = send(
        options.input,
        options.output,
        config,
        (options.host, options.port),
        group=options.group,
        overwrite=options.overwrite,
        parameters=options.parameters,
    )
    _say(f"{result.images} images in {options.output}")
    if not result.good:
        _say("cinestream: the scan did not end well; see the lines above", error=True)
    return 0 if result.good else 1


def _simulate(options: argparse.Namespace) -> int:
    from gadgets.simulation import ScanPlan, noise_path, write_simulation
    from gadgets.simulation.presets import plan_like

    names = [field.name for field in dataclasses.fields(ScanPlan)]
    plan = plan_like(options.like, {name: getattr(options, name) for name in names if hasattr(options, name)})
    if options.output.exists() and not options.overwrite:
        raise SettingsError(f"{options.output} exists; choose another file or allow replacing it with --overwrite")
    truth = write_simulation(plan, options.output)
    noise = f", its noise in {noise_path(options.output)}" if plan.has_noise_file else ""
    _say(f"scan in {options.output}{noise}, truth in {truth}")
    return 0


def _convert(options: argparse.Namespace) -> int:
    from gadgets.files.convert import ConvertOptions, convert

    choices = ConvertOptions(
        field_of_view=options.fov, slice_thickness=options.slice_thickness, rr=options.rr, mask=options.mask
    )
    result = convert(options.input, options.output, choices, overwrite=options.overwrite)
    for note in result.notes:
        _say(note)
    _say(f"{result.readouts} readouts in {options.output}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in (*_OF_FILES, *_OF_SUITE)}
    wrong = _OF_FILES if options.suite else _OF_SUITE
    unwanted = [_spelled(name) for name in wrong if given[name]]
    if options.suite:
        if unwanted:
            raise SettingsError(f"--suite makes its own scans and images; it does not go with {', '.join(unwanted)}")
        return _evaluate_suite(options)
    if unwanted:
        raise SettingsError(f"{', '.join(unwanted)} belongs to --suite standard; give that instead of image files")
    if not options.outputs or not options.truth:
        raise SettingsError("expected image files and --truth FILE, or --suite standard")
    return _evaluate_files(options)


_OF_FILES = ("outputs", "truth", "slices", "gif", "csv", "dists_weights", "group")
_OF_SUITE = ("methods", "data", "quick", "json", "fresh", "picture")


def _spelled(name: str) -> str:
    return "image files" if name == "outputs" else "--" + name.replace("_", "-")


def _evaluate_suite(options: argparse.Namespace) -> int:
    from gadgets.evaluation.suite import run_suite, table
    from gadgets.evaluation.suite_page import write_picture, write_suite_page

    for path in filter(None, (options.report, options.picture, options.json)):
        if not path.absolute().parent.is_dir():  # better known now than in an hour
            raise ResourceError(f"cannot write {path}: there is no folder {path.absolute().parent}")
    if options.fresh and not options.json:
        raise SettingsError("--fresh begins the file of --json anew; give that too")
    outcome = run_suite(
        [name for name in options.methods.split(",") if name],
        data=options.data,
        quick=options.quick,
        stored=options.json,
        fresh=options.fresh,
        images=bool(options.report or options.picture),
    )
    _say(table(outcome))
    if options.json:
        _say(f"every number in {options.json}")
    if options.report:
        write_suite_page(options.report, outcome)
        _say(f"report in {options.report}")
    if options.picture:
        write_picture(options.picture, outcome)
        _say(f"figure in {options.picture}")
    return 0


def _evaluate_files(options: argparse.Namespace) -> int:
    from gadgets.evaluation import images as evaluate

    sources = [path for path in (*options.outputs, options.truth) if path.exists()]
    for path in filter(None, (options.report, options.gif, options.csv)):
        if path.exists() and any(map(path.samefile, sources)):
            raise SettingsError(f"{path} is one of the files to read; choose another one to write")
    dists = None
    if options.dists_weights:
        from recon_core.metrics.dists import load_dists

        dists = load_dists(options.dists_weights)
    evaluations, truth = evaluate.evaluate(options.outputs, options.truth, options.group or "dataset", dists)
    _say(evaluate.table(evaluations, slices=options.slices))
    if options.csv:
        evaluate.write_csv(options.csv, evaluations)
        _say(f"scores in {options.csv}")
    if options.gif:
        evaluate.write_gif(options.gif, evaluations, truth)
        _say(f"loop in {options.gif}")
    if options.report:
        evaluate.write_page(options.report, evaluations, truth, options.truth.name)
        _say(f"report in {options.report}")
    return 0


def _methods(_: argparse.Namespace) -> int:
    for name, info in METHODS.items():
        _say(f"{name}\n    {info.summary}\n    {info.reference}")
        if info.network:
            for line in _weights_of(name):
                _say(f"    {line}")
    return 0


def _weights_of(method: str) -> list[str]:
    """Say which weights there are for a network."""
    from recon_core.weights.manifest import weights_of

    entries = weights_of(method)
    if not entries:
        return [f"no weights: scans go to the fallback; cinestream import-weights {method} FILE brings some"]
    return [
        f"weights {entry.name}: {entry.describe()}" + (f" ({entry.licence})" if entry.licence else "")
        for entry in entries
    ]


def _import_weights(options: argparse.Namespace) -> int:
    from recon_core.trust.ranges import TrainingRange
    from recon_core.weights.loading import import_weights

    trained = None
    if options.range:
        values = parse_assignments(options.range)
        trained = TrainingRange.parse({name: _range_value(name, value) for name, value in values.items()})
    entry, report = import_weights(
        options.method,
        options.file,
        name=options.name,
        folder=options.folder,
        config=parse_assignments(options.config),
        range=trained,
        input_peak=options.input_peak,
        licence=options.licence,
        source=options.source,
    )
    _say(report.text())
    for note in filter(None, (entry.notes, f"licence: {entry.licence}" if entry.licence else "")):
        _say(note)
    if entry.range is None:
        _say("what they were trained for is not recorded, so no scan is refused; --range says it")
    _say(f"{entry.file} is used by method={entry.method}, weights={entry.name}")
    return 0


def _train(options: argparse.Namespace) -> int:
    from gadgets.commands.train import export, train
    from gadgets.reports.training import write_samples
    from recon_core.training.plan import preset_plan, read_plan
    from recon_core.weights.manifest import user_folder

    if options.samples:
        write_samples(options.samples, options.data)
        _say(f"samples in {options.samples}")
    if not options.folder:
        if options.samples:
            return 0
        raise SettingsError("expected --folder DIR to keep the training in, or --samples FILE to look at the data")
    plan = read_plan(options.config, options.method) if options.config else preset_plan(options.method)
    seconds = float("inf") if options.minutes is None else 60 * options.minutes
    trainer = train(plan, options.folder, options.data, seconds, _say)
    if trainer is None:
        _say("to be continued by the same command")
        return 0
    entry = export(trainer, options.weights_folder or user_folder())
    _say(f"{entry.file} is used by method={entry.method}, weights={entry.name}")
    return 0


def _range_value(name: str, text: str) -> object:
    """Read ``4:12``, or for patterns ``random,interleaved``."""
    if name == "patterns":
        return text.split(",")
    try:
        bounds = [float(part) for part in text.split(":")]
    except ValueError:
        return text
    return bounds * 2 if len(bounds) == 1 else bounds


def _pipelines(options: argparse.Namespace) -> int:
    if options.install:
        for path in install_pipelines(options.install):
            _say(str(path))
        return 0
    for found in list_pipelines(options.pipelines).values():
        comment = "\n    ".join(found.comment.splitlines()[1:] or [found.comment])
        _say(f"{found.name}\n    {comment}\n")
    _say(_settings_help())
    return 0


def _doctor(options: argparse.Namespace) -> int:
    if options.input is not None:
        return _doctor_file(options)
    from gadgets.inspection.installation import ask, examine

    good = True
    for check in examine() if options.server is None else [ask(options.server)]:
        _say(str(check))
        good = good and not check.remedy
    return 0 if good else 1


def _doctor_file(options: argparse.Namespace) -> int:
    from gadgets.files.raw import refuse_same_file
    from gadgets.inspection.raw_file import inspect

    if options.json:
        refuse_same_file(options.input, options.json)
    settings = _settings(options)
    if not options.verbose:
        logger.setLevel(logging.CRITICAL)  # what the chain notes is in the report
    report = inspect(options.input, settings, options.group)
    _say(report.text())
    if options.json:
        report.write_json(options.json)
    return 0 if report.good else 1


def _openrecon_label(options: argparse.Namespace) -> int:
    from gadgets.settings import openrecon

    if options.check:
        found = openrecon.check_label(openrecon.read_label(_read_text(options.check)))
        _say("\n".join(found) or f"{options.check}: nothing that a scanner is known to reject", error=bool(found))
        return 1 if found else 0
    label = openrecon.make_label(gpu=options.gpu)
    text = openrecon.encode_label(label) + "\n" if options.base64 else openrecon.label_text(label)
    if options.output:
        _write_text(options.output, text)
        _say(f"label of {openrecon.package_name(label)} in {options.output}")
    else:
        sys.stdout.write(text)
    return 0


# --- arguments --------------------------------------------------------------------------------------------------------


def _settings(options: argparse.Namespace) -> Settings:
    path = Path(options.pipeline)
    if path.suffix == ".xml" and path.is_file():
        settings = parse_configuration(_read_text(path)) or Settings()
    else:
        settings = find_pipeline(options.pipeline, options.pipelines).settings
    return apply(settings, parse_assignments(options.set))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResourceError(f"cannot read {path}: {error}") from error


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from error


def _settings_help() -> str:
    rows = describe_settings()
    lines = [f"  {name}  ({kind}, default {default or 'empty'})\n      {text}" for name, kind, default, text in rows]
    return "settings of a pipeline, for --set name=value and for <configuration> in its XML:\n" + "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cinestream", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"cinestream {__version__}")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say what is done; twice for more")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_replay(_command(commands, "replay", _replay, "reconstruct a raw file, no server needed", _settings_help()))
    _add_export(_command(commands, "export", _export, "write images of an image file as DICOM, NIfTI or MP4"))
    _add_serve(_command(commands, "serve", _serve, "run the resident server", _settings_help()))
    _add_send(_command(commands, "send", _send, "send a raw file to a server and keep the images"))
    _add_simulate(_command(commands, "simulate", _simulate, "make a raw file of a beating heart, with its truth"))
    text = "make a raw file of k-space in the layout of CMRxRecon or fastMRI"
    _add_convert(_command(commands, "convert", _convert, text))
    _add_evaluate(
        _command(commands, "evaluate", _evaluate, "measure image files against the truth of their scan, or methods")
    )
    listing = _command(commands, "pipelines", _pipelines, "list pipelines and settings, or install them")
    _add_folders(listing)
    listing.add_argument("--install", type=Path, metavar="DIR", help="copy them into a Gadgetron's home or folder")
    _command(commands, "methods", _methods, "list the reconstruction methods, and the weights of the networks")
    text = "bring trained weights of a network, such as its authors', to where pipelines find them"
    _add_import_weights(_command(commands, "import-weights", _import_weights, text, _IMPORT_HELP))
    text = "train a network on series drawn at random, from scratch or from where it was left"
    _add_train(_command(commands, "train", _train, text, _TRAIN_HELP))
    text = "check this machine, look through a raw file, or ask whether a server is there"
    _add_doctor(_command(commands, "doctor", _doctor, text))
    text = "write what an OpenRecon image must carry: name, needs and the parameters at the scanner"
    _add_openrecon_label(_command(commands, "openrecon-label", _openrecon_label, text))
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    epilog: str = "",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _within(kind: Callable[[str], float], lowest: float, highest: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"expected a number from {lowest:g} to {highest:g}, got {text!r}")
        return value

    return convert


_PORT = _within(int, 0, 65535)


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return path


def _add_replay(parser: argparse.ArgumentParser) -> None:
    _add_files(parser)
    parser.add_argument("-p", "--pipeline", default="cg_sense", help="name or XML file (default: %(default)s)")
    _add_folders(parser)
    _add_set(parser)
    parser.add_argument("--gif", type=Path, metavar="FILE", help="write the cine loops as an animated GIF")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML report")
    text = "truth of the scan, to measure the error: .npz with 'image' or 'reference' (slice, frame, y, x)"
    parser.add_argument("--truth", type=Path, metavar="FILE", help=text)
    text = "raw file whose noise readouts whiten the coils, instead of those of the scan"
    parser.add_argument("--noise", metavar="FILE[:GROUP]", help=text)
    _add_noise_store(parser, "none is used without")
    _add_targets(parser)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, help="image file that replay, send or the stock client wrote")
    parser.add_argument("--group", default="dataset", help="HDF5 group of the images (default: %(default)s)")
    text = "raw file of the scan, for exam and patient, where the image file does not keep its header"
    parser.add_argument("--scan", type=Path, metavar="FILE", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier export left")
    _add_targets(parser)


def _add_targets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dicom", type=Path, metavar="DIR", help="write the images as DICOM into this folder")
    text = "one file per frame (classic) or one per series (enhanced, multi-frame) (default: %(default)s)"
    parser.add_argument("--dicom-kind", choices=("classic", "enhanced"), default="classic", help=text)
    text = "write the images as NIfTI: a file (.nii, .nii.gz), further ones beside it, or a folder"
    parser.add_argument("--nifti", type=Path, metavar="PATH", help=text)
    text = "write the first series as a film, slices side by side, in real time; needs the package av"
    parser.add_argument("--mp4", type=Path, metavar="FILE", help=text)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    other = parser.add_mutually_exclusive_group()
    text = "raw file to look through: what it holds, what a pipeline would do with it, what looks wrong"
    other.add_argument("input", type=Path, nargs="?", metavar="FILE", help=text)
    text = "only ask whether a cinestream answers there; for the health check of a container"
    other.add_argument("--server", type=_address, metavar="HOST:PORT", help=text)
    parser.add_argument("--group", default="dataset", help="HDF5 group of the raw data (default: %(default)s)")
    parser.add_argument("-p", "--pipeline", default="cg_sense", help="name or XML file (default: %(default)s)")
    _add_folders(parser)
    _add_set(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report on the raw file for machines too")


def _add_noise_store(parser: argparse.ArgumentParser, default: str) -> None:
    text = f"folder that keeps the noise of measurements for scans that depend on it; {default}"
    parser.add_argument("--noise-store", default="", metavar="DIR", help=text)
    text = "how long noise counts (default: %(default)g days)"
    parser.add_argument("--noise-days", type=_within(float, 0, 1e5), default=DAYS, metavar="DAYS", help=text)
    text = "of how many measurements noise is kept at most (default: %(default)s)"
    parser.add_argument("--noise-entries", type=_within(int, 1, 1e6), default=ENTRIES, metavar="N", help=text)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    text = "address to bind to (default: %(default)s, this machine only; there are no passwords in the protocol)"
    parser.add_argument("--host", default=DEFAULT_HOST, help=text)
    parser.add_argument("--port", type=_PORT, default=DEFAULT_PORT, help="default: %(default)s; FIRE expects 9002")
    _add_folders(parser)
    parser.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME=PIPELINE",
        help="pipeline for a configuration name that the sender fixes, for instance openrecon=cg_sense; repeatable",
    )
    _add_set(parser)
    text = (
        "folder where a peer may name files for ct_path and ct_transform, relative to it; repeatable. Without, only "
        "pipelines known by name and --set name such files"
    )
    parser.add_argument("--ct-folder", type=_folder, action="append", default=[], metavar="DIR", help=text)
    _add_noise_store(parser, "off keeps none (default: cinestream/noise in your cache folder)")
    parser.add_argument("--save-raw", type=Path, metavar="DIR", help="keep the raw stream of every scan in this folder")
    text = "how much of a scan may wait for the reconstruction before the sender is held up (default: %(default)s)"
    parser.add_argument("--queue-gib", type=_within(float, 0, 1e6), default=4.0, metavar="GIB", help=text)
    text = "how long running scans may take to finish when the server is stopped (default: %(default)s s)"
    parser.add_argument("--grace", type=_within(float, 0, 1e6), default=10.0, metavar="SECONDS", help=text)


def _add_send(parser: argparse.ArgumentParser) -> None:
    _add_files(parser)
    parser.add_argument("--host", default=DEFAULT_HOST, help="default: %(default)s")
    parser.add_argument("--port", type=_PORT, default=DEFAULT_PORT, help="default: %(default)s; a Gadgetron has 9002")
    parser.add_argument("-c", "--config", default="cg_sense", help="pipeline the server knows (default: %(default)s)")
    parser.add_argument("-C", "--config-file", type=Path, metavar="XML", help="send this pipeline whole instead")
    parser.add_argument("--parameters", default="", metavar="JSON", help='FIRE parameters: {"parameters": {...}}')


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host.strip("[]"):
        raise argparse.ArgumentTypeError(f"expected HOST:PORT, got {text!r}")
    return host.strip("[]"), int(_PORT(port))


def _add_openrecon_label(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it to this file")
    parser.add_argument("--base64", action="store_true", help="as the image carries it, in base64, instead of JSON")
    parser.add_argument("--gpu", action="store_true", help="for an image that can use a GPU")
    text = "look instead for what makes a scanner reject the label in this file (JSON or base64)"
    parser.add_argument("--check", type=Path, metavar="FILE", help=text)


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    from gadgets.simulation import ScanPlan
    from gadgets.simulation.presets import PRESETS

    parser.add_argument("output", type=Path, help="raw file to write; the truth goes beside it")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    kinds_of_scan = "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
    text = f"begin with the options of a known kind of scan; those that are given besides win. {kinds_of_scan}"
    parser.add_argument("--like", default="", choices=tuple(PRESETS), metavar="KIND", help=text)
    kinds = typing.get_type_hints(ScanPlan)
    for field in dataclasses.fields(ScanPlan):
        kind, text = kinds[field.name], f"{field.metadata['help']} (default: {field.default})".replace("%", "%%")
        name = "--" + field.name.replace("_", "-")
        if kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            choices = field.metadata["choices"] or None
            parser.add_argument(
                name, type=kind, default=argparse.SUPPRESS, choices=choices, help=text, metavar=_metavar(kind)
            )


def _add_convert(parser: argparse.ArgumentParser) -> None:
    text = "CMRxRecon .mat, or HDF5 as fastMRI or PromptMR have it; <stem>_info.csv beside it is read too"
    parser.add_argument("input", type=Path, help=text)
    parser.add_argument("output", type=Path, help="ISMRMRD HDF5 file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    text = "field of view of the image in mm along the readout and the phase encoding"
    parser.add_argument("--fov", type=_pair, metavar="X,Y", help=text)
    parser.add_argument("--slice-thickness", type=_within(float, 0.1, 100), metavar="MM", help="slice thickness in mm")
    text = "length of the cardiac cycle that the frames show, which no such file holds (default: %(default)s ms)"
    parser.add_argument("--rr", type=_within(float, 200, 4000), default=1000.0, metavar="MS", help=text)
    text = "file with the mask of an undersampled file (default: lines that hold anything but zeros)"
    parser.add_argument("--mask", type=Path, metavar="FILE", help=text)


def _pair(text: str) -> tuple[float, float]:
    length = _within(float, 1, 2000)
    x, comma, y = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"expected two lengths in mm such as 340,255, got {text!r}")
    return length(x), length(y)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    text = "write an HTML page with loops, errors, temporal profiles and scores"
    parser.add_argument("--report", type=Path, metavar="FILE", help=text)

    files = parser.add_argument_group("image files against the truth of their scan")
    text = "image file that replay or send wrote; several are compared side by side"
    files.add_argument("outputs", type=Path, nargs="*", metavar="output", help=text)
    text = "truth of the scan: .npz with 'image' or 'reference' (slice, frame, y, x)"
    files.add_argument("--truth", type=Path, metavar="FILE", help=text)
    files.add_argument("--slices", action="store_true", help="print the scores of every slice too")
    text = "write a looped GIF of them side by side, and the errors of the last one"
    files.add_argument("--gif", type=Path, metavar="FILE", help=text)
    files.add_argument("--csv", type=Path, metavar="FILE", help="write the scores as CSV")
    text = "measure DISTS too, with these weights (.safetensors: VGG-16 features.*, alpha, beta; none come along)"
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
    text = "folder with scd_cine (Sunnybrook Cardiac Data as npz), whose held-out patient joins, and semi_real_cine"
    suite.add_argument("--data", type=_folder, metavar="DIR", help=text)
    suite.add_argument("--quick", action="store_true", help="one scan of each part, and only the samplings with R = 8")
    text = "keep every number here; a later call computes only what is missing"
    suite.add_argument("--json", type=Path, metavar="FILE", help=text)
    suite.add_argument("--fresh", action="store_true", help="begin the file of --json anew")
    text = "draw a still figure: truth and methods, their errors, temporal profiles (PNG)"
    suite.add_argument("--picture", type=Path, metavar="FILE", help=text)


def _add_import_weights(parser: argparse.ArgumentParser) -> None:
    networks = [name for name, info in METHODS.items() if info.network]
    parser.add_argument("method", choices=networks, metavar="METHOD", help=f"one of {', '.join(networks)}")
    text = "checkpoint: .safetensors, .pth, .pt or .ckpt; code inside is never run"
    parser.add_argument("file", type=Path, metavar="FILE", help=text)
    parser.add_argument("--name", default="", help="name of the weights (default: the method's)")
    text = "folder to put them into (default: cinestream's own among your data)"
    parser.add_argument("--folder", type=Path, metavar="DIR", help=text)
    text = "field of the network's configuration that differs from the published one, such as channels=32; repeatable"
    parser.add_argument("--config", action="append", default=[], metavar="NAME=VALUE", help=text)
    text = "what they were trained for: acceleration=4:12, frames=12:30, patterns=random,interleaved; repeatable"
    parser.add_argument("--range", action="append", default=[], metavar="NAME=LEAST:MOST", help=text)
    text = "peak of the time-averaged image that the network saw in training, where that matters (default: 1)"
    parser.add_argument("--input-peak", type=_within(float, 1e-30, 1e30), metavar="X", help=text)
    parser.add_argument("--licence", default="", metavar="TEXT", help="licence of the weights, kept with them")
    parser.add_argument("--source", default="", metavar="TEXT", help="where they come from, kept with them")


_IMPORT_HELP = """\
The names of the tensors in the file must be those that the network's authors use. Whatever does not fit (missing,
unexpected or of another shape) is listed and refuses the file. Checkpoints that are known bring what they were trained
for along; of others it can be given with --range, and a scan outside goes to the fallback.

  cinestream import-weights crnn_mri crnn_mri_d5_c5.pth
  cinestream replay scan.h5 -p crnn_mri -o images.h5
"""


def _add_train(parser: argparse.ArgumentParser) -> None:
    networks = [name for name, info in METHODS.items() if info.network]
    parser.add_argument("method", choices=networks, metavar="METHOD", help=f"one of {', '.join(networks)}")
    text = "folder of the training: checkpoint and curves; one that is there is continued"
    parser.add_argument("--folder", type=Path, metavar="DIR", help=text)
    text = "YAML with preset (short or published) and what differs from it, such as steps, rate or network"
    parser.add_argument("--config", type=Path, metavar="FILE", help=text)
    text = "images to learn from beside those drawn: scd_cine/*.npz and scd_ed_es/*.npz"
    parser.add_argument("--data", type=Path, metavar="DIR", help=text)
    text = "stop after so long, to be continued by the same command (default: when the plan is done)"
    parser.add_argument("--minutes", type=_within(float, 0.0, 1e6), metavar="X", help=text)
    text = "folder to put the weights into (default: cinestream's own among your data)"
    parser.add_argument("--weights-folder", type=Path, metavar="DIR", help=text)
    text = "draw a sheet of what is learned from into this PNG, and train only if --folder is given too"
    parser.add_argument("--samples", type=Path, metavar="FILE", help=text)


_TRAIN_HELP = """\
Series of known truth are drawn without end: beating hearts of the simulator, the images of --data, other shapes, in
motion of many kinds; coils, lines and noise are drawn for each. The preset "short" trains a narrow network in one to
three hours of a CPU core; "published" has the loss, optimiser and schedule of the paper, for a GPU. The weights are
exported as METHOD-small or METHOD when the plan is done, with the range of scans on which they are no worse than
cg_sense; that comparison takes some minutes more.

  cinestream train crunet_mr --samples samples.png
  cinestream train crunet_mr --folder training/crunet_mr --minutes 9
"""


def _metavar(kind: type) -> str | None:
    return {int: "N", float: "X"}.get(kind)


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help="ISMRMRD HDF5 file, or a stream that --save-raw left")
    parser.add_argument("-o", "--output", type=Path, required=True, help="HDF5 file for the images")
    parser.add_argument("--group", default="dataset", help="HDF5 group (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")


def _add_folders(parser: argparse.ArgumentParser) -> None:
    text = "folder with further pipelines; repeatable"
    parser.add_argument("--pipelines", type=_folder, action="append", default=[], metavar="DIR", help=text)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of the pipeline; repeatable"
    )


if __name__ == "__main__":
    sys.exit(main())
