"""Arguments that several commands have, and the objects that are made of them."""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from gadgets.commands.console import say
from gadgets.preparation.noise_store import DAYS, ENTRIES, NoiseStore, default_folder
from gadgets.settings import pipelines
from gadgets.settings.settings import Settings, apply, grouped_settings, parse_assignments
from recon_core.errors import CinestreamError, ResourceError
from recon_core.methods import find_method, method_names, network_names
from recon_core.own_methods import allow_methods
from recon_core.words import choose_from

if TYPE_CHECKING:
    from collections.abc import Callable

    from gadgets.export.targets import ExportTargets
    from gadgets.problems import Problems

logger = logging.getLogger("cinestream")


# --- types of values --------------------------------------------------------------------------------------------------


def within(kind: Callable[[str], float], lowest: float, highest: float) -> Callable[[str], float]:
    """Make the type of an argument that is a number within limits.

    Parameters
    ----------
    kind
        ``int`` or ``float``.
    lowest, highest
        The limits; both are allowed.
    """

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"expected a number from {lowest:g} to {highest:g}, got {text!r}")
        return value

    return convert


port = within(int, 0, 65535)


def address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``; brackets around an IPv6 address are taken off."""
    host, _, number = text.rpartition(":")
    if not host.strip("[]"):
        raise argparse.ArgumentTypeError(f"expected HOST:PORT, got {text!r}")
    return host.strip("[]"), int(port(number))


def folder(text: str) -> Path:
    """Read the path of a folder that is there."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return path


# --- pipelines and their settings -------------------------------------------------------------------------------------


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """Add ``--pipeline``, ``--pipelines`` and ``--set``, of which `chosen_settings` makes settings."""
    parser.add_argument("-p", "--pipeline", default="cg_sense", help="name or XML file (default: %(default)s)")
    add_pipeline_folders(parser)
    add_set(parser)


def add_pipeline_folders(parser: argparse.ArgumentParser) -> None:
    """Add ``--pipelines``."""
    text = "folder with further pipelines; repeatable"
    parser.add_argument("--pipelines", type=folder, action="append", default=[], metavar="DIR", help=text)


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    text = "change a setting of the pipeline; repeatable"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=text)


def chosen_settings(options: argparse.Namespace) -> Settings:
    """Read the settings of the chosen pipeline, changed by those of ``--set``.

    Raises
    ------
    SettingsError
        If there is no such pipeline, or a setting is unknown or not allowed.
    ResourceError
        If the file of the pipeline cannot be read.
    """
    allow_methods()
    settings = pipelines.settings_of(options.pipeline, options.pipelines)
    return apply(settings, parse_assignments(options.set))


def settings_help() -> str:
    """Describe every setting, for the end of a help text."""
    lines = ["settings of a pipeline, for --set name=value and for <configuration> in its XML"]
    for heading, settings in grouped_settings():
        lines.append(f"\n{heading}:")
        for one in settings:
            lines += [f"  {one.name}  ({one.kind}, default {one.default_text or 'empty'})", f"      {one.help}"]
    return "\n".join(lines)


# --- files ------------------------------------------------------------------------------------------------------------


def add_raw_and_images(parser: argparse.ArgumentParser) -> None:
    """Add the raw file to read and the image file to write."""
    parser.add_argument("input", type=Path, help="ISMRMRD HDF5 file, or a stream that --save-raw left")
    parser.add_argument("-o", "--output", type=Path, required=True, help="HDF5 file for the images")
    parser.add_argument("--group", default="dataset", help="HDF5 group (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")


def add_export_targets(parser: argparse.ArgumentParser) -> None:
    """Add the formats to export to, of which `export_targets` makes targets."""
    parser.add_argument("--dicom", type=Path, metavar="DIR", help="write the images as DICOM into this folder")
    text = "one file per frame (classic) or one per series (enhanced, multi-frame) (default: %(default)s)"
    parser.add_argument("--dicom-kind", choices=("classic", "enhanced"), default="classic", help=text)
    text = "write the images as NIfTI: a file (.nii, .nii.gz), further series as files next to it, or a folder"
    parser.add_argument("--nifti", type=Path, metavar="PATH", help=text)
    text = "write the first series as a film, slices side by side, in real time; needs the package av"
    parser.add_argument("--mp4", type=Path, metavar="FILE", help=text)


def export_targets(options: argparse.Namespace, source: Path) -> ExportTargets:
    """Collect what is to be exported, and refuse at once what could not be written.

    Raises
    ------
    SettingsError, ResourceError
        If a target is the source, exists already, or cannot be written.
    """
    from gadgets.export.targets import ExportTargets
    from recon_core.storage import refuse_same_file

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


def export_to(targets: ExportTargets, images: Path, group: str, problems: Problems, header: str = "") -> None:
    """Export an image file, and say what was written."""
    from gadgets.export.targets import export_images

    for line in export_images(images, group, targets, problems, header):
        say(line)


# --- networks ---------------------------------------------------------------------------------------------------------


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add the method of a network."""
    text = f"one of {', '.join(network_names())}, or a network of your own"
    parser.add_argument("method", type=_network, metavar="METHOD", help=text)


def _network(name: str) -> str:
    """The name of a method that is a network; one of the user's own is made known."""
    try:
        if name not in method_names():
            allow_methods([name])
        if find_method(name).network:
            return name
    except CinestreamError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    raise argparse.ArgumentTypeError(f"{name} is no network; {choose_from(name, network_names())}")


# --- noise ------------------------------------------------------------------------------------------------------------


def add_noise_store(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the store of noise; `default` says what happens without."""
    text = f"folder that keeps the noise of measurements for scans that depend on it; {default}"
    parser.add_argument("--noise-store", default="", metavar="DIR", help=text)
    text = "how long noise counts (default: %(default)g days)"
    parser.add_argument("--noise-days", type=within(float, 0, 1e5), default=DAYS, metavar="DAYS", help=text)
    text = "of how many measurements noise is kept at most (default: %(default)s)"
    parser.add_argument("--noise-entries", type=within(int, 1, 1e6), default=ENTRIES, metavar="N", help=text)


def noise_store(options: argparse.Namespace) -> NoiseStore | None:
    """The store that the options name; that of this user where they name none, if there is a home."""
    if options.noise_store == "off":
        return None
    try:
        path = Path(options.noise_store) if options.noise_store else default_folder()
    except ResourceError as error:
        logger.warning("noise is not kept from scan to scan: %s", error)
        return None
    return NoiseStore(path, options.noise_days, options.noise_entries)
