"""Where the repository is, and the data next to it that are no part of it."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
#: Golden vectors (``parity/``) and real scans (``data/``). A clone has none; tests that need them are skipped.
SHARED = REPOSITORY.parent / "shared"
ABSENT = "data that are no part of the repository: "


def _reason(path: Path) -> str:
    return ABSENT + path.relative_to(SHARED).as_posix()


def existing(path: Path) -> Path:
    """Hand on a path below `SHARED`, or skip the test and say what it needs."""
    if not path.exists():
        pytest.skip(_reason(path))
    return path


def needs(path: Path) -> pytest.MarkDecorator:
    """Mark of a test that needs a path below `SHARED`."""
    return pytest.mark.skipif(not path.exists(), reason=_reason(path))
