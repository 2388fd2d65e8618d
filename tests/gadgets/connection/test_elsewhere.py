"""Log and images of workers, as a front knows them."""

from gadgets.connection.elsewhere import Elsewhere


def test_a_picture_is_asked_of_the_worker_that_has_the_scan():
    shown, asked = Elsewhere(2), []

    def look(process):
        return lambda *what: asked.append((process, *what)) or b"picture"

    shown.note(1, {"a": {"snr": 1}}, look(1))
    shown.note(2, {"b": {"snr": 2}}, look(2))
    assert (shown.facts("a"), shown.facts("b"), shown.facts("c")) == ({"snr": 1}, {"snr": 2}, {})
    assert shown.loop("b", 3) == shown.maps("a", 0) == b"picture"
    assert shown.loop("c", 0) == b""
    assert asked == [(2, "loop", "b", 3), (1, "maps", "a", 0)]


def test_only_what_is_new_is_a_change():
    shown = Elsewhere(1)
    shown.note(1, {}, bytes)
    assert shown.changes == 0
    for images, changes in (({"a": {}}, 1), ({"a": {}}, 1), ({"a": {"snr": 1}}, 2)):
        shown.note(1, images, bytes)
        assert shown.changes == changes
    shown.forget(1)
    assert (shown.changes, shown.facts("a")) == (3, {})
