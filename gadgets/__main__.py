"""The command line, for the console script and for ``python -m gadgets``."""

import os
import signal
import sys

_INTERRUPTED = 130  # as shells have it


def run() -> int:
    """Run the command line, and give its exit status; a Ctrl-C while it is imported ends in one line, too."""
    usual = signal.signal(signal.SIGINT, _stop)
    from gadgets.commands.main import main

    signal.signal(signal.SIGINT, usual)
    return main()


def _stop(*_: object) -> None:
    """End at once: nothing was begun, and an exception amid an import may come out as another one."""
    sys.stderr.write("cinestream: stopped\n")
    sys.stderr.flush()
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(run())
