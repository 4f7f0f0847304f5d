"""Training checkpoints survive whatever happens to the newest one, and say so."""

import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from foundation.errors import InputError
from foundation.runstate import BackgroundWriter, RunState, newest_good_checkpoint, publish_checkpoint, sweep

FILES = ("weights.safetensors", "moments.safetensors", "average.safetensors", "state.json", "manifest.json")


def a_state(step: int, size: int = 100) -> RunState:
    weights = {"net.weight": torch.full((size,), float(step)), "net.bias": torch.zeros(3)}
    moments = {moment: {name: tensor + 1 for name, tensor in weights.items()} for moment in ("exp_avg", "exp_avg_sq")}
    return RunState(
        step,
        weights,
        moments,
        counts=dict.fromkeys(weights, float(step)),
        average={name: tensor + 2 for name, tensor in weights.items()},
        identity={"label": "test"},
        ledger=[{"step": 1, "skipped": "loss", "loss": None}],
        norms=[0.1, 1 / 3],
    )


def publish(folder: Path, *steps: int) -> None:
    for step in steps:
        publish_checkpoint(folder, step, a_state(step).write)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest(folder: Path) -> tuple[int, list[str]]:
    said: list[str] = []
    found = newest_good_checkpoint(folder, say=said.append)
    assert found is not None
    return found[0], said


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    publish(tmp_path, 7)
    ours, theirs = a_state(7), RunState.read(tmp_path / "step_00000007")
    assert ours.notes() == theirs.notes()
    assert theirs.average is not None and ours.average is not None
    for left, right in (
        (ours.weights, theirs.weights),
        (ours.average, theirs.average),
        *((ours.moments[moment], theirs.moments[moment]) for moment in ours.moments),
    ):
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    assert sorted(FILES) == names(tmp_path / "step_00000007")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["remove", "garble", "shorten", "empty"])
def test_whatever_file_is_damaged_the_one_before_is_taken_and_that_is_said(
    tmp_path: Path, file: str, damage: str
) -> None:
    publish(tmp_path, 1, 2)
    path = tmp_path / "step_00000002" / file
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"garble": flipped, "shorten": content[:-1], "empty": b""}[damage])
    step, said = newest(tmp_path)
    assert step == 1
    assert len(said) == 1 and "step_00000002 is damaged" in said[0]
    assert file in said[0] or file == "manifest.json", "a changed hash accuses the file it belongs to"


def test_when_no_checkpoint_is_good_the_run_does_not_start_anew_by_itself(tmp_path: Path) -> None:
    assert newest_good_checkpoint(tmp_path) is None
    publish(tmp_path, 1)
    (tmp_path / "step_00000001" / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"state\.json is not what was written"):
        newest_good_checkpoint(tmp_path)


def test_damaged_later_ones_do_not_push_out_the_newest_good(tmp_path: Path) -> None:
    """After a fall-back from 9 and 8 to 5, step 6 is written: by name it is the oldest but one."""
    publish_checkpoint(tmp_path, 5, a_state(5).write, keep=3)
    for step in (8, 9):
        shutil.copytree(tmp_path / "step_00000005", tmp_path / f"step_0000000{step}")
    publish_checkpoint(tmp_path, 6, a_state(6).write, keep=2)
    assert names(tmp_path) == ["step_00000005", "step_00000006"]
    (tmp_path / "step_00000006" / "weights.safetensors").unlink()
    publish_checkpoint(tmp_path, 7, a_state(7).write, keep=2)
    assert names(tmp_path) == ["step_00000005", "step_00000007"], "a damaged one does not count among those kept"


def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    publish(tmp_path, 1)

    def crash(aside: Path) -> None:
        (aside / "state.bin").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish_checkpoint(tmp_path, 2, crash)
    assert newest(tmp_path) == (1, [])
    assert names(tmp_path) == ["step_00000001"]


def test_what_a_killed_writer_left_is_swept_away(tmp_path: Path) -> None:
    publish(tmp_path, 1)
    (tmp_path / ".aside-99-step_00000002").mkdir()
    (tmp_path / ".old-99-step_00000001").mkdir()
    sweep(tmp_path)
    assert names(tmp_path) == ["step_00000001"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As if the disk were full after `size` bytes of any file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_checkpoint_and_is_one_clear_error(tmp_path: Path) -> None:
    publish(tmp_path, 1)
    writer = BackgroundWriter(tmp_path)
    with largest_file(2**20):
        writer.save(a_state(2, size=2**20))
        with pytest.raises(InputError, match=r"a checkpoint can be written.*step 2"):
            writer.join()
    assert newest(tmp_path) == (1, [])
    assert names(tmp_path) == ["step_00000001"]
    writer.save(a_state(3))
    writer.join()
    assert newest(tmp_path) == (3, [])


def test_the_writer_does_not_hold_training_up(tmp_path: Path) -> None:
    """`save` returns while the folder is still being written, and the next one waits for it."""
    may_end, order = threading.Event(), []

    class Slow(RunState):
        def write(self, folder: Path) -> None:
            may_end.wait(10)
            super().write(folder)
            order.append(self.step)

    state = a_state(1)
    writer = BackgroundWriter(tmp_path)
    writer.save(Slow(1, state.weights))
    assert not (tmp_path / "step_00000001").exists()
    may_end.set()
    writer.save(Slow(2, state.weights))
    writer.join()
    assert order == [1, 2]
    assert newest(tmp_path) == (2, [])
