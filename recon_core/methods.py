"""The reconstruction methods by name; light to import, so that names and help need no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodInfo:
    """What a user wants to know before choosing a method.

    Parameters
    ----------
    target
        ``module:callable`` that builds the method from `ReconOptions`; imported when the method is first needed.
    summary
        One sentence: what it does and what it needs.
    reference
        Paper (DOI), or empty.
    """

    target: str
    summary: str
    reference: str = ""


METHODS: dict[str, MethodInfo] = {
    "zero_filled": MethodInfo(
        "recon_core.classical.zero_filled:ZeroFilled",
        "inverse FFT of the measured lines, coils combined with the maps; shows what the sampling leaves",
        "10.1002/(SICI)1522-2594(200005)43:5<682::AID-MRM10>3.0.CO;2-G",
    ),
    "cg_sense": MethodInfo(
        "recon_core.classical.cg_sense:CGSense",
        "iterative SENSE around the image of the time average, regularised by the noise level; takes any pattern",
        "10.1002/mrm.1241",
    ),
    "grappa": MethodInfo(
        "recon_core.classical.grappa:Grappa",
        "missing lines from their neighbours, learned from reference lines or the time average; regular patterns only",
        "10.1002/mrm.10171",
    ),
    "low_rank_sparse": MethodInfo(
        "recon_core.classical.low_rank_sparse:LowRankSparse",
        "low rank plus sparse (L+S), all frames together; takes any pattern, best with one that changes over time",
        "10.1002/mrm.25240",
    ),
}
