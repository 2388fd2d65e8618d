"""What all tests share."""

import pytest

import recon_core  # noqa: F401 - before torch, for the settings that it makes for it


@pytest.fixture(scope="session", autouse=True)
def _no_weights_of_the_user(tmp_path_factory):
    """The weights that whoever runs the tests has imported must not change them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.delenv("CINESTREAM_WEIGHTS", raising=False)
        yield
