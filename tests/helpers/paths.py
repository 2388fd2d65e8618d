"""Where the repository is, and the data beside it that are no part of it."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
#: Golden vectors (``parity/``) and real scans (``data/``). A clone has none; tests that need them are skipped.
SHARED = REPOSITORY.parent / "shared"
