"""What befalls checkpoints: killed processes, full disks, flipped bits, lost and cut files."""

import json
import logging
import random
import re
import resource
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from children import environment

from jaxpipe.checkpoint import Checkpoints
from jaxpipe.checkpoint import folder as folder_module
from jaxpipe.errors import CheckpointError, CorruptCheckpointError

KILLS = Path(__file__).parent / "kills.py"
LARGE = 2**16


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("processes", "kills"),
    [
        (1, 10),
        (2, 5),
        pytest.param(1, 200, marks=pytest.mark.slow),
        pytest.param(2, 200, marks=pytest.mark.slow),
    ],
)
def test_whatever_moment_a_process_is_killed_at_no_finished_checkpoint_is_lost(processes, kills):
    command = [sys.executable, str(KILLS), "--kills", str(kills), "--processes", str(processes)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert "none lost" in done.stdout
    cut = re.search(r"(\d+) of them in the middle of a save", done.stdout)
    assert cut and int(cut[1]) > 0, done.stdout
    print(done.stdout)


def a_tree(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    return {
        "large": rng.standard_normal(LARGE // 4, np.float32),
        "small": {"x": np.float32(step), "y": rng.integers(0, 9, (3, 5))},
        "step": np.int32(step),
    }


def equal(found: Any, want: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, want)


@pytest.fixture
def checkpoints(tmp_path) -> Iterator[Checkpoints]:
    with Checkpoints(tmp_path / "c", keep=3) as opened:
        for step in (1, 2, 3):
            opened.save(step, a_tree(step))
        opened.wait()
        yield opened


def files_of(checkpoints: Checkpoints, step: int) -> list[Path]:
    return sorted(path for path in checkpoints.path(step).rglob("*") if path.is_file())


# Bits and files


def test_every_flipped_bit_is_found_and_survived(checkpoints):
    rng, files, path = random.Random(0), files_of(checkpoints, 3), checkpoints.path(3)
    assert len(files) > 10
    # Each file, and then as many more as make 200, large files more often.
    weights = [file.stat().st_size for file in files]
    chosen = [*files, *rng.choices(files, weights, k=200 - len(files))]
    for file in chosen:
        before = file.read_bytes()
        flipped = bytearray(before)
        bit = rng.randrange(8 * len(before))
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        step, damaged = checkpoints.newest()
        assert step == 2 and len(damaged) == 1, (file, bit)
        assert damaged[0].startswith("step 3 is damaged, and lies in ")
        aside = path.with_name("step_00000003.bad")
        assert aside.is_dir() and str(aside) in damaged[0]
        aside.rename(path)
        file.write_bytes(before)
    equal(checkpoints.restore(2, a_tree(0)), a_tree(2))
    assert checkpoints.newest() == (3, [])
    equal(checkpoints.restore(3, a_tree(0)), a_tree(3))


def test_a_bit_that_flips_after_all_was_verified_is_found_by_who_reads_it(checkpoints):
    [chunk] = [file for file in files_of(checkpoints, 3) if file.stat().st_size > LARGE // 2]
    data = bytearray(chunk.read_bytes())
    data[1234] ^= 16
    chunk.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match="large cannot be read"):
        checkpoints.restore(3, a_tree(0))


@pytest.mark.parametrize("harm", ["cut", "emptied", "lost", "longer", "a link"])
def test_every_file_that_is_cut_or_lost_is_found_at_once(checkpoints, harm):
    for file in files_of(checkpoints, 3):
        before = file.read_bytes()
        if harm in ("lost", "a link"):
            file.unlink()
        if harm == "a link":
            file.symlink_to(files_of(checkpoints, 2)[0])
        if harm in ("cut", "emptied", "longer"):
            sizes = {"cut": before[: len(before) // 2], "emptied": b"", "longer": before + b"\0"}
            file.write_bytes(sizes[harm])
        with pytest.raises(CheckpointError, match=r"damaged|finished|no checkpoint of step 3"):
            checkpoints.manifest(3)
        assert checkpoints.newest().step == 2
        aside = checkpoints.path(3).with_name("step_00000003.bad")
        if aside.exists():  # without a manifest it never was a checkpoint
            aside.rename(checkpoints.path(3))
        file.unlink(missing_ok=True)
        file.write_bytes(before)
    assert checkpoints.newest() == (3, [])


def test_who_only_reads_moves_nothing(checkpoints):
    files_of(checkpoints, 3)[-1].write_bytes(b"")
    step, [problem] = Checkpoints(checkpoints.folder).newest()
    assert step == 2 and f"lies in {checkpoints.path(3)}:" in problem
    assert checkpoints.path(3).is_dir()
    assert checkpoints.newest().step == 2 and not checkpoints.path(3).exists()


def test_nobody_starts_afresh_because_all_are_damaged(checkpoints):
    for step in (1, 2, 3):
        files_of(checkpoints, step)[-1].write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is sound:(.|\n)*step_00000001"):
        checkpoints.newest()
    with pytest.raises(CheckpointError, match="is sound"):  # and the next time neither
        checkpoints.newest()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "state/../../x", "a\\b"])
def test_a_manifest_that_points_elsewhere_is_not_followed(checkpoints, name):
    file = checkpoints.path(3) / "MANIFEST.json"
    _, body = file.read_bytes().split(b"\n", 1)
    content = json.loads(body)
    content["files"][name] = [1, 2]
    text = json.dumps(content).encode()
    file.write_bytes(json.dumps({"crc32": zlib.crc32(text)}).encode() + b"\n" + text + b"\n")
    with pytest.raises(CorruptCheckpointError, match="makes no sense: file"):
        checkpoints.manifest(3)


def test_a_newer_format_is_no_damage(checkpoints):
    file = checkpoints.path(3) / "MANIFEST.json"
    _, body = file.read_bytes().split(b"\n", 1)
    text = json.dumps(json.loads(body) | {"version": 2}).encode()
    file.write_bytes(json.dumps({"crc32": zlib.crc32(text)}).encode() + b"\n" + text + b"\n")
    with pytest.raises(CheckpointError, match=r"version 2; expected .* version 1"):
        checkpoints.newest()
    assert checkpoints.path(3).is_dir()


UNPICKLING = """
import sys
import numpy as np
from jaxpipe.checkpoint import Checkpoints

seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith("pickle.") else None)
with Checkpoints(sys.argv[1]) as checkpoints:
    assert checkpoints.newest() == (3, [])
    found = checkpoints.restore(3, {"step": np.int32(0)}, partial=["*"])
assert int(found["step"]) == 3
print(seen)
"""


def test_pickles_are_never_opened(checkpoints):
    (checkpoints.path(3) / "state" / "weights.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    # An audit hook stays as long as its process.
    done = subprocess.run(
        [sys.executable, "-c", UNPICKLING, str(checkpoints.folder)],
        capture_output=True, text=True, env=environment(),
    )  # fmt: skip
    assert done.stdout == "[]\n", done.stderr


# Disks


def test_a_full_disk_costs_one_checkpoint_and_the_next_one_is_written(tmp_path, caplog):
    caplog.set_level(logging.CRITICAL, "absl")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, a_tree(1))
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE // 2, hard))
        try:
            checkpoints.save(2, a_tree(2))
            checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        [failure] = checkpoints.failures()
        assert "cannot write the checkpoint of step 2" in failure and "process 0: " in failure
        assert "File too large" in failure and "Older checkpoints: [1]" in failure
        assert checkpoints.steps() == [1] and checkpoints.failures() == []
        assert not checkpoints.path(2).exists()  # its room is free
        checkpoints.save(3, a_tree(3))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3] and checkpoints.failures() == []
        equal(checkpoints.restore(3, a_tree(0)), a_tree(3))


def test_too_little_room_is_found_before_anything_is_written(tmp_path, monkeypatch):
    little = lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000)  # type: ignore[attr-defined]
    checkpoints = Checkpoints(tmp_path / "c")
    monkeypatch.setattr(shutil, "disk_usage", little)
    checkpoints.save(1, a_tree(1))
    assert not checkpoints.path(1).exists()
    assert len(checkpoints.failures()) == 1
    # A run whose last checkpoint failed must not end as if all were well.
    with pytest.raises(CheckpointError, match=r"step 1 .* takes [0-9,]+ bytes, and 1,000 are free"):
        checkpoints.close()


def test_what_is_interrupted_while_it_is_deleted_is_no_checkpoint(checkpoints, monkeypatch):
    path = checkpoints.path(1)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(folder_module.shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            checkpoints._folder.delete(1)
        patched.undo()
    assert checkpoints.steps() in ([1, 2, 3], [2, 3])
    checkpoints._folder.clean()
    assert (path in path.parent.iterdir()) == (1 in checkpoints.steps())
    assert not list(path.parent.glob("*.old"))


def test_nothing_is_deleted_before_a_newer_one_is_there(tmp_path, monkeypatch):
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        seen = []
        delete = checkpoints._folder.delete
        monkeypatch.setattr(
            checkpoints._folder,
            "delete",
            lambda step: (seen.append(checkpoints.steps()), delete(step)),
        )
        for step in range(1, 6):
            checkpoints.save(step, {"x": jnp.full(3, step)})
        checkpoints.wait()
    assert seen == [[1, 2, 3], [2, 3, 4], [3, 4, 5]]
