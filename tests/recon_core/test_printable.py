import logging

import pytest

import recon_core
from recon_core.printable import make_log_printable, printable

assert recon_core  # makes the log of the package printable

EVIL = "name\x1b[2J\r\nERROR forged\x07\u202egnp.exe\u2028\x9b31m\x7f"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ümläute µ 心", "Ümläute µ 心"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nb\r\n\tc", r"a\nb\r\n\tc"),
        ("a\u202eb\u2028c", r"a\u202eb\u2028c"),
        ("a\ud800b", r"a\ud800b"),
        ("", ""),
    ],
)
def test_control_characters_are_written_out(text, shown):
    assert printable(text) == shown


def test_lines_of_our_own_stay():
    assert printable("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"


def test_the_log_has_one_printable_line_for_a_record(caplog):
    logger = logging.getLogger("cinestream")
    with caplog.at_level(logging.INFO, "cinestream"):
        logger.info("text from the peer: %s", EVIL)
        logger.error("%s", "x" * 100_000)
        try:
            raise ValueError(EVIL)
        except ValueError:
            logger.exception("unexpected error")
    first, second, third = caplog.records
    assert first.getMessage().isprintable()
    assert "forged" in first.getMessage()
    assert len(second.getMessage()) < 5000
    assert "100000 characters" in second.getMessage()
    shown = logging.Formatter("%(message)s").format(third)
    assert "ValueError" in shown
    assert all(line.isprintable() for line in shown.splitlines())


def test_it_is_made_so_once():
    logger = logging.getLogger("cinestream")
    before = list(logger.filters)
    make_log_printable("cinestream")
    assert logger.filters == before
    assert before
