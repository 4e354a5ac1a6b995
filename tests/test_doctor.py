"""`jaxpipe doctor`: every check can fail, and says what to do."""

import dataclasses
import json

import pytest
from test_cli import ended

from jaxpipe.doctor import CHECKS, Cache, Facts, Link, examine, gather
from jaxpipe.doctor.facts import cache_at

GIB = 2**30
SOUND = Facts(
    python="3.12.1",
    versions={"jax": "0.12.0", "jaxlib": "0.12.0", "jax-cuda13-plugin": "0.12.0"},
    environment={"XLA_PYTHON_CLIENT_MEM_FRACTION": ".9", "SLURM_NTASKS": "2"},
    address="10.0.0.7",
    platform="gpu",
    kinds=("NVIDIA H100 80GB HBM3",) * 2,
    device_memory=72 * 10**9,
    problem="",
    links=(Link("each to the next", 2e-5, 3e11),),
    cores=16,
    memory=128 * GIB,
    shared_memory=64 * GIB,
    disk=100 * GIB,
    open_files=65536,
    cache=Cache("/cache", True),
)
PROXY = {"SLURM_NTASKS": "2", "HTTPS_PROXY": "http://proxy"}
CASES = [
    ("packages", "FAIL", dict(versions={"jax": "0.9.0", "jaxlib": "0.9.0"}), "expected 0.10.2"),
    ("packages", "FAIL", dict(versions={"jax": "0.12.0", "jaxlib": "0.11.0"}), "install both"),
    ("packages", "warn", dict(versions={"jax": "0.11.0", "jaxlib": "0.11.0"}), "xla#46231"),
    ("packages", "warn", dict(versions={"jax": "0.12.0", "nvidia-nccl-cu13": "2.28.5"}), "NCCL"),
    ("devices", "FAIL", dict(kinds=(), problem="no driver"), "JAX has none: no driver"),
    ("devices", "warn", dict(kinds=("a", "b")), "the slowest"),
    ("devices", "warn", dict(platform="cpu", kinds=("cpu",)), "jax-cuda13-plugin is installed"),
    ("launcher", "warn", dict(environment={"SLURM_GPUS_PER_TASK": "1"}), "jax#23452"),
    ("address", "FAIL", dict(address="127.0.1.1"), "MAD#228"),
    ("address", "warn", dict(address="127.0.1.1", environment={}), "MAD#228"),
    ("address", "FAIL", dict(address=""), "has no address"),
    ("proxies", "warn", dict(environment=PROXY), "no_proxy"),
    ("links", "warn", dict(links=(Link("sum of all", 1e-3, 1e9),)), "slower than PCIe"),
    ("host", "warn", dict(memory=2 * GIB), "copy a state"),
    ("/dev/shm", "warn", dict(shared_memory=64 * 2**20), "--shm-size"),
    ("disk", "FAIL", dict(disk=GIB // 2), "too little"),
    ("disk", "warn", dict(disk=5 * GIB), "5.0 GiB"),
    ("open files", "FAIL", dict(open_files=256), "ulimit"),
    ("open files", "warn", dict(open_files=1024), "1,024"),
    ("cache", "FAIL", dict(cache=Cache("/c", True, is_own=False)), "open to others"),
    ("cache", "FAIL", dict(cache=Cache("/c", True, others_write=True)), "chmod 700"),
    ("reserved", "warn", dict(environment={}), "75 %"),
]


def test_a_sound_machine_has_nothing_to_complain_of():
    findings = examine(SOUND)
    assert [f.verdict for f in findings] == ["ok"] * len(CHECKS)
    # Every check is seen to complain below, but for the one that only tells.
    assert {f.check for f in findings} - {check for check, *_ in CASES} == {"options"}
    assert "xla_gpu_enable_latency_hiding_scheduler=True" in findings[-1].text


@pytest.mark.parametrize(("check", "verdict", "changes", "text"), CASES)
def test_what_is_wrong_is_told(check, verdict, changes, text):
    [found] = [f for f in examine(dataclasses.replace(SOUND, **changes)) if f.check == check]
    assert found.verdict == verdict and text in found.text


def test_no_proxy_is_known():
    facts = dataclasses.replace(SOUND, environment=PROXY | {"no_proxy": ".cluster"})
    assert [f.verdict for f in examine(facts) if f.check == "proxies"] == ["ok"]


def test_a_cache_that_others_may_write_into_is_seen(tmp_path):
    tmp_path.chmod(0o777)
    assert cache_at(str(tmp_path)) == Cache(str(tmp_path), True, is_own=True, others_write=True)
    tmp_path.chmod(0o700)
    assert cache_at(str(tmp_path)) == Cache(str(tmp_path), True)
    assert cache_at(str(tmp_path / "none")) == Cache(str(tmp_path / "none"), False)
    assert cache_at(None) is None
    elsewhere = cache_at("gs://cache")
    assert elsewhere is not None and elsewhere.exists


def test_this_machine_is_looked_at(tmp_path):
    facts = gather(tmp_path / "not" / "there")
    assert facts.platform == "cpu" and len(facts.kinds) == 8
    assert facts.versions["jax"] and facts.cores > 0 and facts.disk > 0 and facts.open_files > 0
    assert [link.what for link in facts.links] == ["each to the next", "sum of all"]
    assert all(link.latency > 0 and link.bandwidth > 0 for link in facts.links)


def test_the_command_is_read_by_programs_too(capsys, tmp_path):
    code, out, _ = ended(capsys, "doctor", "--no-links", "--runs", str(tmp_path), "--json")
    found = json.loads(out)
    assert len(found) == len(CHECKS) and set(found[0]) == {"check", "verdict", "text"}
    assert code == (2 if any(one["verdict"] == "FAIL" for one in found) else 0)
    _, lines, _ = ended(capsys, "doctor", "--no-links", "--runs", str(tmp_path))
    assert len(lines.splitlines()) == len(CHECKS)
