"""What the tests of all commands share."""

import subprocess
import sys

import pytest

from gadgets.commands.main import main
from gadgets.files.raw import open_scan, write_scan
from gadgets.simulation import ScanPlan, write_simulation
from tests.helpers.builders import readouts as random_readouts

PLAN = ScanPlan(matrix_x=48, matrix_y=40, frames=3, coils=3, acceleration=2, acs_lines=10, seed=3)


@pytest.fixture(scope="session")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    write_simulation(PLAN, path)
    return path


@pytest.fixture
def damaged(scan, tmp_path):
    """The scan with two readouts of another coil count among the others."""
    path = tmp_path / "damaged.h5"
    with open_scan(scan) as raw:
        items = list(raw.items)
        write_scan(path, raw.header, [*items[:-1], random_readouts(2, coils=5, samples=96), items[-1]])
    return path


@pytest.fixture
def run(capsys):
    """Run a command; gives its exit status, output and error output. No user error may show a traceback."""

    def call(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            status = end.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return call


def program(*arguments, **options):
    """Run it as a process of its own."""
    command = [sys.executable, "-m", "gadgets", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)
