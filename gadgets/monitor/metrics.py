"""Facts of a server in the text form of Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from gadgets import __version__
from gadgets.connection.records import BOUNDS
from gadgets.monitor.machine import memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric

    from gadgets.connection.records import Load, ServerRecord


class _Facts(Collector):
    """Reads the facts whenever it is asked, so that nothing is counted twice."""

    def __init__(self, record: ServerRecord, load: Callable[[], Load]) -> None:
        self._record = record
        self._load = load

    def collect(self) -> Iterator[Metric]:
        """All metrics of now."""
        totals, load, ram = self._record.totals(), self._load(), memory()
        yield _counter("scans", "Scans that are over, by how they ended.", "verdict", totals.scans)
        yield _counter("failures", "Cases that lost data or images, by kind.", "kind", totals.failures)
        yield _counter("slices", "Slices or windows of frames, by the method that made them.", "method", totals.slices)
        yield CounterMetricFamily("cinestream_images", "Images that were made.", value=totals.images)
        yield CounterMetricFamily("cinestream_readouts", "Readouts that came.", value=totals.readouts)
        seconds = HistogramMetricFamily(
            "cinestream_seconds",
            "Time of a slice by stage; latency is from its last readout to its images, scan is of whole scans.",
            labels=["stage"],
        )
        for stage, (counts, total) in totals.seconds.items():
            seconds.add_metric([stage], list(zip((*map(str, BOUNDS), "+Inf"), _sums(counts), strict=True)), total)
        yield seconds
        gauges = {
            "running_scans": ("Scans that run.", len(self._record.running)),
            "connections": ("Connections that are served.", load.connections),
            "queue_bytes": ("Bytes of streams that wait for the reconstruction.", load.queue_bytes),
            "queue_limit_bytes": ("Bytes from which on senders are held up.", load.queue_limit),
            "scan_memory_bytes": ("Memory that scans have taken for what they gather and make.", load.memory_bytes),
            "scan_memory_limit_bytes": ("What they may take.", load.memory_limit),
            "process_memory_bytes": ("Main memory of the process.", ram.process),
            "host_memory_free_bytes": ("Main memory that can be taken.", ram.host_free),
            "gpu_memory_bytes": ("Memory of the GPU.", ram.gpu),
            "gpu_memory_free_bytes": ("Memory of the GPU that is free.", ram.gpu_free),
            "gpu_memory_process_bytes": ("Memory of the GPU that the process has taken.", ram.gpu_process),
            "start_time_seconds": ("When the server began, in s since 1970.", self._record.began_at),
            "fault": ("1 if no scan can be reconstructed.", int(bool(self._record.fault))),
        }
        for name, (text, value) in gauges.items():
            if value is not None:
                yield GaugeMetricFamily(f"cinestream_{name}", text, value=value)
        version = GaugeMetricFamily("cinestream_info", "1, with the version.", labels=["version"])
        version.add_metric([__version__], 1)
        yield version


class Metrics:
    """The metrics of one server.

    Parameters
    ----------
    record, load
        Its facts, and what tells its load.
    """

    def __init__(self, record: ServerRecord, load: Callable[[], Load]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Facts(record, load))

    def text(self) -> bytes:
        """All of them as Prometheus reads them."""
        return generate_latest(self._registry)


def _counter(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"cinestream_{name}", text, labels=[label])
    for key, count in sorted(values.items()):
        family.add_metric([key], count)
    return family


def _sums(counts: tuple[int, ...]) -> list[int]:
    """How many are at most as long as each class, as Prometheus wants them."""
    return [sum(counts[: end + 1]) for end in range(len(counts))]
