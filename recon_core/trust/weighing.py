"""How far the image of a network is believed, where the image that it is weighed against has an error of its own."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from recon_core.errors import SettingsError
from recon_core.words import choose_from

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recon_core.trust.ranges import Sampling

#: Share of what the data leave open below which there is nothing to gain from an image.
LEAST_SHARE = 0.05
#: Median in dB on surveyed scans below which weights are said to add nothing.
LEAST_GAIN = 0.05
#: Variance, over the square of the peak, that `Weighing.level` and `Weighing.variance` refer to.
USUAL_VARIANCE = 1e-3
# Peak signal-to-noise ratio of usual scans, beyond which k-t SENSE reckons with more noise than there is, and their net
# acceleration, least and most.
USUAL_SNR, _USUAL_ACCELERATION = 200.0, (3.0, 10.0)
_FAINT = 20.0  # signal-to-noise ratio below which a scan is faint: hardly any real cine is, or what networks learn from
_SMALL = 1e-6  # measured samples of complete data are all, but for rounding
_LARGEST = 100.0
_ALWAYS = ("level", "variance", "change")  # in a manifest, the others where they count


@dataclass(frozen=True, kw_only=True)
class Weighing:
    """What was found of weights on surveyed scans: the weight of a pixel is the logistic function of a sum.

    The sum is ``level + variance log10(v / 0.001) + change log10(c)``, where v is the variance that the data leave
    around the pixel over the square of the peak, and c the mean over the slice of what the network changes of the
    magnitudes around a pixel, squared, over the variance there. Where much is left open, a network knows better; if it
    goes much further than the data leave open, anywhere, it knows less than it claims. To it comes what sets the scan
    apart, see `Beyond`:

    - ``snr log10(s / 200)`` of scans with a peak signal-to-noise ratio s above 200, where the variance is
      overestimated, and ``noise log10(200 / s)`` of those below: many networks do not know noise as well as k-t SENSE;
    - ``acceleration log10(r / 10)`` of those with a net acceleration r above 10, where little holds a network back, and
      ``density log10(3 / r)`` of those with one below 3, which leave little but noise;
    - ``repeats`` of those whose frames have the same lines, where the variance does not count what folds over;
    - ``complete`` of those that lack nothing, and ``faint log10(20 / s)`` of others with a ratio s below 20: most
      packaged weights were trained on neither, and noise is nearly all that can be wrong there;
    - ``points`` of those of points instead of whole lines, which most packaged weights were not trained on.
    """

    level: float
    variance: float = 0.0
    change: float = 0.0
    snr: float = 0.0
    noise: float = 0.0
    acceleration: float = 0.0
    density: float = 0.0
    repeats: float = 0.0
    faint: float = 0.0
    complete: float = 0.0
    points: float = 0.0
    """`level`, `variance`, `change`, `snr`, `noise`, `acceleration`, `density`, `repeats`, `faint`, `complete`,
    `points`: As above; per factor of ten."""

    @classmethod
    def parse(cls, mapping: Mapping[str, object]) -> Weighing:
        """Read it as a manifest has it: ``{level: -1.2, variance: 1.1, change: -1.8}``.

        Raises
        ------
        SettingsError
            If a name is unknown or missing, or a value is no number.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        values: dict[str, float] = {}
        for name, value in mapping.items():
            if name not in known:
                raise SettingsError(f"weighing has no {name!r}; {choose_from(name, known)}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
                raise SettingsError(
                    f"{name} of weighing must be a number up to {_LARGEST:g} in size, got {value!r:.60}"
                )
            values[name] = float(value)
        if "level" not in values:
            raise SettingsError(f"weighing needs level, got {', '.join(values) or 'nothing'}")
        return cls(**values)

    def of_scan(self, beyond: Beyond) -> Weighing:
        """The weighing of one scan, which has the terms of the scan in its level."""
        level = self.level + sum(getattr(self, name) * value for name, value in beyond._asdict().items())
        return dataclasses.replace(self, level=level, **dict.fromkeys(Beyond._fields, 0.0))

    def mapping(self) -> dict[str, float]:
        """Give it as a manifest has it."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value or name in _ALWAYS}


class Beyond(NamedTuple):
    """What sets a scan apart from usual ones: how far it is beyond them, in factors of ten, or what it is."""

    snr: float = 0.0
    noise: float = 0.0
    acceleration: float = 0.0
    density: float = 0.0
    repeats: float = 0.0
    faint: float = 0.0
    complete: float = 0.0
    points: float = 0.0
    """`snr`, `noise`: Of more, and of less, than the usual signal-to-noise ratio. `acceleration`, `density`: Of more,
    and of less, than the usual net acceleration. `faint`: Of less than the ratio of a faint scan, if not complete.
    `repeats`, `complete`, `points`: 1 of a scan whose frames have the same lines, of one that lacks nothing, and of one
    of points; else 0."""

    @classmethod
    def of(cls, sampling: Sampling) -> Beyond:
        """That of a scan; a signal-to-noise ratio that is not known is a usual one."""
        of_snr = math.log10((sampling.snr or USUAL_SNR) / USUAL_SNR)
        least, most = _USUAL_ACCELERATION
        complete = sampling.acceleration < 1 + _SMALL
        return cls(
            snr=max(0.0, of_snr),
            noise=max(0.0, -of_snr),
            acceleration=math.log10(max(1.0, sampling.acceleration / most)),
            density=math.log10(max(1.0, least / sampling.acceleration)),
            repeats=float(sampling.repeats),
            faint=0.0 if complete else max(0.0, math.log10(_FAINT / (sampling.snr or _FAINT))),
            complete=float(complete),
            points=float(sampling.pattern == "points"),
        )


def objections(share: float, start: str) -> list[str]:
    """Say why a weighed image should not be sent; nothing if all is well.

    Parameters
    ----------
    share
        Of the network, of what the data leave open: 1 is its image, 0 the one that it is weighed against.
    start
        Name of the method that made the latter.
    """
    if share >= LEAST_SHARE:
        return []
    return [f"counts {100 * share:.1g} % of what the data leave open beside that of {start}: nothing is gained by it"]
