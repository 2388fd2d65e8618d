"""What all tests share."""

import shutil

import pytest

import recon_core  # noqa: F401 - before torch, for the settings that it makes for it
from tests.helpers.paths import REPOSITORY

PACKAGED = REPOSITORY / "weights"


@pytest.fixture(scope="session", autouse=True)
def _no_weights(tmp_path_factory):
    """The weights and noise of whoever runs the tests must not change them, nor the weights that come along."""
    folder = tmp_path_factory.mktemp("weights")
    shutil.copy(PACKAGED / "known.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.delenv("CINESTREAM_WEIGHTS", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # where serve keeps noise
        patch.setattr("recon_core.weights.manifest._packaged", lambda: folder)
        yield
