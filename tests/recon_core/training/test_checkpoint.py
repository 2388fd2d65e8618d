import contextlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from recon_core.errors import ResourceError
from recon_core.training import checkpoint
from recon_core.training.checkpoint import LARGEST_FILE, read_checkpoint, write_checkpoint


class Killed(BaseException):
    """The end of the process, which nothing catches."""


def state(number):
    generator = torch.Generator().manual_seed(number)
    tensors = {"a.weight": torch.randn(40, 25, generator=generator), "step": torch.tensor(float(number))}
    return tensors, {"step": number, "plan": {"name": "x", "rate": 1e-3, "frames": [8, 16]}}


def number_of(folder):
    """Which state the folder holds; all of it must be of that one."""
    found = read_checkpoint(folder)
    if found is None:
        return None
    tensors, facts = found
    wanted, expected = state(facts["step"])
    assert facts == expected
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    return facts["step"]


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(checkpoint, "LARGEST_FILE", 1000)


# --- writing and reading ----------------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path):
    folder = tmp_path / "made" / "on the way"
    assert read_checkpoint(folder) is None
    for number in (1, 2, 3):
        write_checkpoint(folder, *state(number))
        assert number_of(folder) == number
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


def test_types_and_layouts_come_back(tmp_path):
    tensors = {
        "half": torch.randn(3, 4).bfloat16(),
        "turned": torch.randn(3, 5, 7, 2).to(memory_format=torch.channels_last),
        "number": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    write_checkpoint(tmp_path / "c", tensors, {})
    found, _ = read_checkpoint(tmp_path / "c")
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_no_file_is_larger_than_allowed(tmp_path):
    write_checkpoint(tmp_path / "c", *state(1))
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "c").iterdir()}
    assert set(sizes) == {"state.json", *(f"state.{part:03d}" for part in range(5))}
    assert max(sizes.values()) == 1000


def test_the_largest_file_by_default():
    assert 2**20 < LARGEST_FILE <= 16 * 2**20


# --- interruptions ----------------------------------------------------------------------------------------------------


def interrupted(monkeypatch, when, error):
    """Let the n-th operation on files fail, halfway where it has a half; gives how many there were."""
    count = [0]

    def watched(name, original):
        def operation(*args, **kwargs):
            count[0] += 1
            if count[0] == when:
                if name == "write_bytes":
                    original(args[0], args[1][: len(args[1]) // 2])
                elif name == "rmtree" and Path(args[0]).is_dir():
                    for path in sorted(Path(args[0]).iterdir())[:2]:
                        path.unlink()
                if kwargs.get("ignore_errors") and isinstance(error, OSError):
                    return None
                raise error
            return original(*args, **kwargs)

        return operation

    for name in ("mkdir", "write_bytes", "write_text", "replace"):
        monkeypatch.setattr(Path, name, watched(name, getattr(Path, name)))
    monkeypatch.setattr(shutil, "rmtree", watched("rmtree", shutil.rmtree))
    return count


def moments(parent):
    """How many operations a write has when there is a former state."""
    folder = parent / "count"
    write_checkpoint(folder, *state(1))
    with pytest.MonkeyPatch.context() as patch:
        count = interrupted(patch, 0, Killed())
        write_checkpoint(folder, *state(2))
    return count[0]


def test_whenever_it_is_stopped_a_whole_state_is_there(tmp_path):
    total = moments(tmp_path)
    assert total >= 10
    seen = set()
    for first in range(1, total + 1):
        for second in (0, *range(1, total + 1)):  # and stopped once more when the next state is written
            folder = tmp_path / f"c{first}-{second}" / "checkpoint"
            write_checkpoint(folder, *state(1))
            for number, when in ((2, first), (3, second)):
                with pytest.MonkeyPatch.context() as patch:
                    interrupted(patch, when, Killed())
                    with contextlib.suppress(Killed):
                        write_checkpoint(folder, *state(number))
                found = number_of(folder)
                assert found in range(1, number + 1), f"stopped at {first} and {second}"
                seen.add((number, found))
            write_checkpoint(folder, *state(4))
            assert number_of(folder) == 4
    assert {(2, 1), (2, 2), (3, 1), (3, 3)} <= seen


def test_without_space_the_former_state_stays(tmp_path):
    total = moments(tmp_path)
    told = []
    for when in range(1, total + 1):
        folder = tmp_path / str(when)
        write_checkpoint(folder, *state(1))
        with pytest.MonkeyPatch.context() as patch:
            interrupted(patch, when, OSError(28, "No space left on device"))
            message = ""
            try:
                write_checkpoint(folder, *state(2))
            except ResourceError as error:
                message = str(error)
        assert number_of(folder) == (1 if message else 2)
        told += [message] if message else []
    assert len(told) >= total - 3  # removing what is in the way may fail without harm
    assert all(re.search("cannot write the checkpoint .*: No space left on device", text) for text in told)


def test_a_file_in_the_way_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write the checkpoint"):
        write_checkpoint(tmp_path / "file" / "checkpoint", *state(1))


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def edit(path, **changes):
    index = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in (index | changes).items() if value is not None}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "state.002"),
        lambda folder: (folder / "state.001").unlink(),
        lambda folder: (folder / "state.004").write_bytes(b""),
        lambda folder: (folder / "state.json").write_text("{"),
        lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "state.json").write_text("[]"),
        lambda folder: edit(folder / "state.json", parts=4),
        lambda folder: edit(folder / "state.json", parts="5"),
        lambda folder: edit(folder / "state.json", facts=None),
        lambda folder: edit(folder / "state.json", sha256="0" * 64),
    ],
)
def test_damage_is_noticed(tmp_path, damage):
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, *state(1))
    damage(folder)
    with pytest.raises(ResourceError, match=r"cannot read the checkpoint .*checkpoint: .*; remove it to start again"):
        read_checkpoint(folder)
