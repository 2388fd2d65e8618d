import os
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gadgets.preparation.noise_statistics import NoiseStatistics
from gadgets.preparation.noise_store import NoiseStore, default_folder
from recon_core.errors import ResourceError
from tests.helpers.builders import readouts

DAY = 86_400.0


def statistics(seed=0):
    found = NoiseStatistics(("left", "rïght"))
    found.add(readouts(40, 2, 16, seed=seed, sample_time_us=7.5))
    return found


def age(folder, seconds):
    """Make all files so old."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


def test_what_is_put_is_found_whole(tmp_path):
    store, kept = NoiseStore(tmp_path / "new" / "folder"), statistics()
    assert store.put("serial_patient_study_17", kept) == ""
    found, why = NoiseStore(tmp_path / "new" / "folder").find("serial_patient_study_17")
    assert why == ""
    assert found.statistics.labels == kept.labels
    np.testing.assert_array_equal(found.statistics.products, kept.products)
    assert (found.statistics.samples, found.statistics.dwell_us) == (640, 7.5)
    assert found.origin.startswith("store, measurement serial_patient_study_17, ")
    assert found.origin.endswith(" s old")


def test_noise_is_for_the_owner_alone(tmp_path):
    NoiseStore(tmp_path / "new").put("1", statistics())
    (path,) = (tmp_path / "new").iterdir()
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path.parent, path)] == [0o700, 0o600]


@pytest.mark.parametrize("other", [("left", "right"), ()])
def test_noise_of_another_scanner_is_not_replaced(tmp_path, caplog, other):
    """And that of the same coils not unseen."""
    store, foreign = NoiseStore(tmp_path), NoiseStatistics(other)
    foreign.add(readouts(40, 2 if other else 3, 16))
    assert store.put("1", statistics(1)) == ""
    assert "other coils" in store.put("1", foreign)
    np.testing.assert_array_equal(store.find("1")[0].statistics.products, statistics(1).products)
    assert "replaced" not in caplog.text
    assert store.put("1", statistics(2)) == ""
    assert "the noise of measurement 1 is kept already, and is replaced" in caplog.text


def test_the_latest_of_a_measurement_counts(tmp_path):
    store = NoiseStore(tmp_path)
    store.put("1", statistics(1))
    store.put("1", statistics(2))
    np.testing.assert_array_equal(store.find("1")[0].statistics.products, statistics(2).products)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["../../etc/passwd", "/", "a" * 500, "Ä\udc80", "con:1"])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    store = NoiseStore(tmp_path / "store")
    store.put("other", statistics())
    store.put(name.replace("\udc80", "é"), statistics())
    assert len(list((tmp_path / "store").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_what_is_not_there():
    found, why = NoiseStore(Path("/nonexistent/folder")).find("1")
    assert found is None
    assert why == "/nonexistent/folder does not hold it"


def test_what_is_too_old_does_not_count_and_goes(tmp_path):
    store = NoiseStore(tmp_path, days=2)
    store.put("1", statistics())
    age(tmp_path, 1.5 * DAY)
    assert store.find("1")[0].origin.endswith("1.5 days old")
    age(tmp_path, 2.5 * DAY)
    found, why = store.find("1")
    assert found is None
    assert "2.5 days old, at most 2 days" in why
    store.put("2", statistics())
    assert len(list(tmp_path.iterdir())) == 1


def test_the_oldest_of_too_many_go(tmp_path):
    store = NoiseStore(tmp_path, entries=3)
    for number in range(5):
        store.put(str(number), statistics())
        for older in range(number + 1):
            path = store._path(str(older))
            if path.exists():
                os.utime(path, (time.time() - 10.0 * (number - older),) * 2)
    assert [number for number in range(5) if store.find(str(number))[0]] == [2, 3, 4]


def test_leftovers_of_a_killed_writer_go_but_not_those_of_one_at_work(tmp_path):
    (tmp_path / "old.part").touch()
    age(tmp_path, 2 * 3600)
    (tmp_path / "new.part").touch()
    NoiseStore(tmp_path).put("1", statistics())
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npz", ".part"]


@hypothesis_settings(max_examples=40)
@given(st.data())
def test_a_damaged_file_is_never_believed_wrongly(tmp_path_factory, data):
    """It is either named as damaged, or what was put."""
    folder = tmp_path_factory.mktemp("noise")
    store, kept = NoiseStore(folder), statistics()
    store.put("1", kept)
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found, why = store.find("1")
    if found is None:
        assert "damaged" in why
    else:
        np.testing.assert_array_equal(found.statistics.products, kept.products)
        assert (found.statistics.samples, found.statistics.labels) == (kept.samples, kept.labels)


def test_a_file_of_another_measurement_under_that_name_is_not_believed(tmp_path):
    store = NoiseStore(tmp_path)
    store.put("1", statistics())
    store._path("1").rename(store._path("2"))
    assert "it holds measurement 1" in store.find("2")[1]


def test_pickles_are_not_read(tmp_path):
    store = NoiseStore(tmp_path)
    store.put("1", statistics())
    with store._path("1").open("wb") as file:
        np.savez(file, measurement=np.array([{"a": 1}], object))
    assert "damaged" in store.find("1")[1]


def test_several_writers_and_readers_never_see_half_a_file(tmp_path):
    """Each has a store of its own on the same folder, as processes do."""
    kept = [statistics(seed) for seed in range(3)]
    known = [one.products.tobytes() for one in kept]
    problems = []
    NoiseStore(tmp_path).put("1", kept[0])

    def write(one):
        problems.extend(filter(None, (NoiseStore(tmp_path, entries=1).put("1", one) for _ in range(30))))

    def read():
        for _ in range(60):
            found, why = NoiseStore(tmp_path).find("1")
            if found is None or found.statistics.products.tobytes() not in known:
                problems.append(why)

    threads = [threading.Thread(target=write, args=(one,)) for one in kept] + [threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(list(tmp_path.iterdir())) == 1


def test_the_default_folder_is_in_the_cache_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "cinestream" / "noise"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "cinestream" / "noise"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(ResourceError, match="--noise-store"):
        default_folder()
