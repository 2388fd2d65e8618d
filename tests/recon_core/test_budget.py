import gc
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from recon_core import budget as budget_module
from recon_core.budget import Budget, free_bytes
from recon_core.errors import ResourceError
from tests.helpers.paths import REPOSITORY


def test_takes_up_to_the_limit_and_says_what_needs_more():
    budget = Budget(1 << 30)
    budget.take(1 << 29, "the readouts")
    with pytest.raises(ResourceError, match=r"4 coils need 2 GiB, and 0.5 GiB of 1 GiB are left.*--memory-gib"):
        budget.take(2 << 30, "4 coils")
    assert budget.used == 1 << 29
    budget.give(1 << 29)
    budget.take(1 << 30, "the readouts")


def test_a_part_counts_in_the_whole():
    whole = Budget(100)
    one, other = Budget(80, whole), Budget(80, whole)
    one.take(70, "one")
    with pytest.raises(ResourceError):
        other.take(40, "the whole has no room")
    assert (one.used, other.used, whole.used) == (70, 0, 70)
    with pytest.raises(ResourceError):
        one.take(20, "the part has no room")
    one.close()
    other.take(40, "other")
    assert whole.used == 40


def test_lent_bytes_come_back_after_an_error():
    budget = Budget(100)
    with budget.lent(60, "an image"):
        assert budget.used == 60
    with pytest.raises(MemoryError), budget.lent(60, "an image"):
        raise MemoryError(budget.used)
    assert budget.used == 0


@pytest.mark.parametrize("view", [lambda array: array, lambda array: array[1:, ::2]], ids=["array", "view"])
def test_an_array_counts_as_long_as_its_memory_is_in_use(view):
    budget = Budget(10_000)
    array = view(np.zeros((10, 20)))
    size = array.nbytes
    assert budget.keep(array, "readouts") is array
    part = array[1:3]
    del array
    gc.collect()
    assert budget.used == size
    del part
    gc.collect()
    assert budget.used == 0


def test_arrays_that_outlive_a_closed_budget_count_once():
    whole = Budget(1000)
    part = Budget(1000, whole)
    array = part.keep(np.zeros(10), "readouts")
    part.close()
    assert whole.used == 0
    whole.take(500, "others")
    del array
    gc.collect()
    assert whole.used == 500


def test_what_is_taken_of_a_closed_budget_is_not_missed_for_ever():
    whole = Budget(1000)
    part = Budget(1000, whole)
    part.close()
    late = part.keep(np.zeros(10), "readouts of a scan that was stopped")
    assert whole.used == 0
    with part.lent(100, "an image"), pytest.raises(ResourceError):
        part.take(2000, "readouts that claim too much")
    del late
    gc.collect()
    assert (whole.used, part.used) == (0, 0)


def test_threads_share_a_budget():
    budget = Budget(10**9)

    def work():
        for _ in range(2000):
            with budget.lent(3, "x"):
                budget.keep(np.zeros(1), "y")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert budget.used == 0


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 5 << 20),
        ({"memory.max": "max", "memory.current": "7", "memory.stat": ""}, 5 << 20),
        ({"memory.max": "3000", "memory.current": "1500", "memory.stat": "anon 9\ninactive_file 500\n"}, 2000),
        ({"memory.max": "3000", "memory.current": "4500", "memory.stat": "anon 9\n"}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "3000",
                "memory/memory.usage_in_bytes": "1000",
                "memory/memory.stat": "total_inactive_file 10\n",
            },
            2010,
        ),
    ],
)
def test_free_memory_of_machine_and_container(tmp_path, monkeypatch, files, free):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    5120 kB\n", encoding="ascii")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="ascii")
    monkeypatch.setattr(budget_module, "_MEMINFO", meminfo)
    monkeypatch.setattr(budget_module, "_CGROUP", tmp_path)
    assert free_bytes() == free
    assert Budget().limit == free // 2


def test_free_memory_that_the_system_does_not_say(tmp_path, monkeypatch):
    monkeypatch.setattr(budget_module, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(budget_module, "_CGROUP", tmp_path)
    assert free_bytes() is None
    assert Budget().limit > 0


def test_freed_memory_goes_back_to_the_system():
    """In a process of its own: what is freed in many threads is not kept for each of them."""
    code = """
        import threading
        from pathlib import Path
        from recon_core.budget import return_freed, share_freed

        def resident():
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

        share_freed()
        kept = [[b""] * 50_000 for _ in range(8)]
        def work(own):
            own[:] = [bytes(1000) for _ in own]
        threads = [threading.Thread(target=work, args=(own,)) for own in kept]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        most = resident()
        kept.clear()
        return_freed()
        print(most - resident())
    """
    if not Path("/proc/self/statm").exists():
        pytest.skip("the system does not say")
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(ran.stdout) > 200
