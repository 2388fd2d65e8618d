import pytest

from tests.helpers.networks import write_tiny_weights


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A function that puts tiny weights in place, with facts of their own."""
    monkeypatch.setenv("CINESTREAM_WEIGHTS", str(tmp_path))

    def write(method, **facts):
        write_tiny_weights(tmp_path, method, **facts)

    return write
