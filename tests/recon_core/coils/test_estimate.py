import pytest
import torch

from recon_core.coils import estimate as module
from recon_core.coils.estimate import are_usable, estimate_maps
from recon_core.options import MapOptions


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_walsh_takes_over_where_maps_are_none(monkeypatch, value):
    lines = torch.randn(3, 12, 10, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    measured = torch.ones(12, dtype=torch.bool)
    bad = torch.full((3, 12, 10), value, dtype=torch.complex64)
    monkeypatch.setitem(module.ESTIMATORS, "auto", lambda *_: (bad, ("lost",)))
    maps, notes = estimate_maps(lines, measured, MapOptions())
    assert are_usable(maps)
    assert notes == ("walsh coil maps instead of auto: those are zero or not finite",)


def test_usable():
    maps = torch.zeros(2, 4, 4, dtype=torch.complex64)
    assert not are_usable(maps)
    maps[0, 1, 1] = 1
    assert are_usable(maps)
    maps[1, 0, 0] = complex(0, torch.nan)
    assert not are_usable(maps)
