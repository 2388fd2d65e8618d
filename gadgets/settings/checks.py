"""Checks of settings that can be made before a scan begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recon_core.errors import ModelError, SettingsError
from recon_core.methods import find_method, method_names
from recon_core.weights.manifest import find_weights

if TYPE_CHECKING:
    from gadgets.settings.settings import Settings


def check_weights(settings: Settings) -> str:
    """See whether the weights that the method needs are there, before the scan rather than after it.

    Parameters
    ----------
    settings
        Settings of the scan.

    Returns
    -------
    str
        Empty if they are, or if the method needs none; else what is missing, and which method is used instead.

    Raises
    ------
    ModelError
        If they are missing and there is no fallback.
    """
    if not find_method(settings.method).network:
        return ""
    try:
        find_weights(settings.method, settings.network.weights)
    except ModelError as error:
        if settings.fallback == "none":
            raise
        return f"{settings.fallback} is used instead of {settings.method}: {error}"
    return ""


def unmet_extras(settings: Settings) -> str:
    """See whether the settings allow the further series that they ask for.

    Returns
    -------
    str
        Empty if they do; else which will not come, and why.
    """
    of_fallback, reasons = sorted(settings.finish.extras & {"fallback", "difference"}), []
    if of_fallback and settings.fallback == "none":
        reasons.append(f"{' and '.join(of_fallback)} (there is no fallback)")
    elif of_fallback and settings.fallback == settings.method:
        reasons.append(f"{' and '.join(of_fallback)} (the fallback is {settings.method} itself)")
    info = find_method(settings.method)
    if "uncertainty" in settings.finish.extras and not (info.samples or info.chooses or info.network):
        known = " and ".join(method_names(lambda info: info.samples and not info.network))
        reasons.append(f"uncertainty (known for {known} and networks, not for {settings.method})")
    if settings.method in settings.finish.extras:
        reasons.append(f"{settings.method} (the images are {settings.method.replace('_', '-')} themselves)")
    return f"extra_series asks for what cannot be: {', '.join(reasons)}" if reasons else ""


def check_units(settings: Settings) -> None:
    """Refuse units that the method, or what is done to its images afterwards, cannot give.

    Raises
    ------
    SettingsError
        If the noise in the images is not known.
    """
    finish = settings.finish
    if finish.units != "snr":
        return
    changed = ["partial_fourier"] if finish.partial_fourier != "off" else []
    changed += ["kspace_filter"] if finish.kspace_filter else []
    if "difference" in finish.extras:
        changed.append("extra_series=difference")  # of images in different units
    if changed or not find_method(settings.method).linear:
        asked, linear = " with ".join([settings.method, *changed]), ", ".join(method_names(lambda info: info.linear))
        raise SettingsError(
            f"units=snr needs images with known noise, those of {linear} without partial_fourier, "
            f"kspace_filter and differences; not so of {asked}"
        )
