"""What a PACS makes of the DICOM files: Orthanc, over C-STORE and C-FIND as a scanner and a viewer speak to it."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress

import pytest

from tests.gadgets.export.support import HEADER, cine
from tests.gadgets.export.test_dcm2niix import VENDORS
from tests.gadgets.export.test_dicom import export

NEEDED = {"Orthanc": "orthanc", "storescu": "dcmtk", "findscu": "dcmtk"}
ABSENT = sorted({package for command, package in NEEDED.items() if shutil.which(command) is None})
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(ABSENT), reason=f"Debian packages that are not installed: {', '.join(ABSENT)}"),
]


class Pacs:
    """A running Orthanc with an empty store."""

    def __init__(self, folder):
        self.folder = folder
        self.dicom, self.web = free_port(), free_port()
        settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "store"),
            "IndexDirectory": str(folder / "store"),
            "DicomPort": self.dicom,
            "HttpPort": self.web,
            "RemoteAccessAllowed": False,
            "DicomCheckCalledAet": False,
            "DicomAlwaysAllowFind": True,
            "Plugins": [],
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.process = subprocess.Popen(
            ["Orthanc", folder / "orthanc.json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with suppress(OSError):
                self.ask("system")
                return
            time.sleep(0.1)
        raise AssertionError("Orthanc does not answer")

    def ask(self, path):
        """What the PACS knows."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web}/{path}", timeout=10) as answer:
            return json.load(answer)

    def store(self, folder):
        """Send files as a modality does."""
        command = ["storescu", "--scan-directories", "--recurse", "127.0.0.1", str(self.dicom), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def clear(self):
        for patient in self.ask("patients"):
            request = urllib.request.Request(f"http://127.0.0.1:{self.web}/patients/{patient}", method="DELETE")
            urllib.request.urlopen(request, timeout=10).close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pacs = Pacs(tmp_path_factory.mktemp("orthanc"))
    yield pacs
    pacs.process.terminate()
    pacs.process.wait(20)


@pytest.fixture
def pacs(server):
    server.clear()
    return server


def number(tags, name):
    return float(tags[name])


def instances(pacs, series):
    """Tags of all images of a series in the order of their instance numbers, as a viewer loads them."""
    tags = [pacs.ask(f"instances/{one}/simplified-tags") for one in pacs.ask(f"series/{series}")["Instances"]]
    return sorted(tags, key=lambda one: int(one["InstanceNumber"]))


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_cine_is_one_series_of_one_study_all_places_frame_after_frame(pacs, vendor, tmp_path):
    export(tmp_path / "dicom", cine(slices=3, frames=4), HEADER.replace(">SIEMENS<", f">{vendor}<"))
    pacs.store(tmp_path / "dicom")
    (study,), (series,) = pacs.ask("studies"), pacs.ask("series")
    assert pacs.ask(f"studies/{study}")["Series"] == [series]
    tags = instances(pacs, series)
    assert len({one["SOPInstanceUID"] for one in tags}) == len(tags) == 12
    places = [tuple(map(float, one["ImagePositionPatient"].split("\\"))) for one in tags]
    times = [number(one, "TriggerTime") for one in tags]
    # all places of a frame, then the next frame, as dcm2niix wants it; viewers stack by place, then play by time
    assert [int(one["InstanceNumber"]) for one in tags] == [*range(1, 13)]
    assert places == places[:3] * 4
    assert len(set(places)) == 3
    for place in set(places):
        played = [time for time, where in zip(times, places, strict=True) if where == place]
        assert played == sorted(set(played))


def test_a_single_slice_is_known_as_a_series_of_its_frames(pacs, tmp_path):
    export(tmp_path / "dicom", cine(slices=1, frames=5), HEADER)
    pacs.store(tmp_path / "dicom")
    (series,) = pacs.ask("series")
    assert pacs.ask(f"series/{series}")["MainDicomTags"]["Modality"] == "MR"
    assert len(instances(pacs, series)) == 5


@pytest.mark.parametrize("counter", ["set", "repetition"])
def test_sets_and_repetitions_are_series_of_their_own(pacs, counter, tmp_path):
    images = [*cine(slices=2, frames=3, **{counter: 0}), *cine(slices=2, frames=3, **{counter: 1})]
    export(tmp_path / "dicom", images, HEADER)
    pacs.store(tmp_path / "dicom")
    found = pacs.ask("series")
    assert len(pacs.ask("studies")) == 1
    assert sorted(len(instances(pacs, one)) for one in found) == [6, 6]
    assert len({pacs.ask(f"series/{one}")["MainDicomTags"]["SeriesNumber"] for one in found}) == 2


def test_the_same_images_again_are_no_further_ones(pacs, tmp_path):
    export(tmp_path / "dicom", cine(slices=1, frames=3), HEADER)
    for _ in range(2):
        pacs.store(tmp_path / "dicom")
    assert len(pacs.ask("instances")) == 3


def test_a_viewer_finds_the_study(pacs, tmp_path):
    export(tmp_path / "dicom", cine(slices=1, frames=2), HEADER)
    pacs.store(tmp_path / "dicom")
    command = ["findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "ModalitiesInStudy=MR", "-k", "PatientName"]
    command += ["-k", "NumberOfStudyRelatedInstances", "127.0.0.1", str(pacs.dicom)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert b"[2 ]" in done.stdout + done.stderr


def test_a_series_of_one_enhanced_file(pacs, tmp_path):
    export(tmp_path / "dicom", cine(slices=3, frames=4), HEADER, "enhanced")
    pacs.store(tmp_path / "dicom")
    (one,) = pacs.ask("instances")
    assert pacs.ask(f"instances/{one}/simplified-tags")["NumberOfFrames"] == "12"
