"""What is right and what is wrong with a machine: small functions of its facts."""

import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from jaxpipe.compiler_options import preset
from jaxpipe.doctor.facts import Facts

Verdict = Literal["ok", "warn", "FAIL"]
_GIB = 2**30


class Finding(NamedTuple):
    """What a check has found.

    Attributes:
      check: what was looked at.
      verdict: "ok"; "warn": it may go wrong, or be slow; "FAIL": it will.
      text: what was found, and what to do about it.
    """

    check: str
    verdict: Verdict
    text: str


class Bad(NamedTuple):
    """Versions of a package that are known to go wrong.

    Attributes:
      package: its name begins so.
      first: the first one that does.
      last: the last one.
      platforms: where.
      text: what goes wrong, where that is told, and what to do.
    """

    package: str
    first: str
    last: str
    platforms: tuple[str, ...]
    text: str


KNOWN_BAD = (
    Bad(
        "jaxlib", "0.11.0", "0.11.0", ("gpu",),
        "residuals offloaded to the host come back wrong (openxla/xla#46231); use another version,"
        " or offload nothing",
    ),
    Bad(
        "nvidia-nccl", "2.28.3", "2.28.8", ("gpu",),
        "not for restarts within a process, says the README of NVIDIA's resiliency extension; use"
        " an older or a newer NCCL",
    ),
)  # fmt: skip


def packages(facts: Facts) -> Finding:
    """Versions that go together, and are none that are known to go wrong."""
    versions = {name: found for name, found in facts.versions.items() if found}
    shown = ", ".join(f"{name} {found}" for name, found in versions.items())
    problems = []
    jax = versions.get("jax", "0")
    if not (0, 10, 2) <= _numbers(jax) < (0, 13):
        problems.append(f"jax {jax}: expected 0.10.2 or newer, before 0.13")
    for name, found in versions.items():
        mine = name in ("jaxlib",) or name.endswith("-plugin")
        if mine and _numbers(found)[:2] != _numbers(jax)[:2]:
            problems.append(f"{name} {found} is not for jax {jax}; install both together")
    if problems:
        return Finding("packages", "FAIL", "; ".join(problems))
    warnings = [
        f"{name} {found}: {bad.text}"
        for bad in KNOWN_BAD
        for name, found in versions.items()
        if name.startswith(bad.package)
        and facts.platform in bad.platforms
        and _numbers(bad.first) <= _numbers(found) <= _numbers(bad.last)
    ]
    return Finding("packages", "warn" if warnings else "ok", "; ".join(warnings) or shown)


def devices(facts: Facts) -> Finding:
    """There are some, all alike."""
    if not facts.kinds:
        return Finding("devices", "FAIL", f"JAX has none: {facts.problem}")
    kinds = sorted(set(facts.kinds))
    memory = "" if facts.device_memory is None else f", {facts.device_memory / 1e9:,.1f} GB each"
    text = f"{len(facts.kinds)} x {', '.join(kinds)}{memory}"
    if len(kinds) > 1:
        return Finding("devices", "warn", f"{text}: the slowest kind sets the pace")
    plugins = [name for name, found in facts.versions.items() if found and "-plugin" in name]
    if facts.platform == "cpu" and plugins:
        return Finding(
            "devices", "warn", f"{text}, although {plugins[0]} is installed: no driver, or"
            " JAX_PLATFORMS or CUDA_VISIBLE_DEVICES hides the GPUs",
        )  # fmt: skip
    return Finding("devices", "ok", text)


def hidden_devices(facts: Facts) -> Finding:
    """No launcher hides devices from processes that have to reach each other's."""
    if "SLURM_GPUS_PER_TASK" in facts.environment:
        return Finding(
            "launcher", "warn", "--gpus-per-task hides each task's GPUs from the others, and NCCL"
            " fails or is slow (jax-ml/jax#23452, #28194); use --gpus-per-node",
        )  # fmt: skip
    return Finding("launcher", "ok", f"processes asked for: {_processes(facts.environment)}")


def own_address(facts: Facts) -> Finding:
    """Other machines can find this one by its name."""
    several = _processes(facts.environment) > 1
    if not facts.address:
        text = "this machine's name has no address; put it into /etc/hosts"
        return Finding("address", "FAIL" if several else "warn", text)
    if facts.address.startswith("127."):
        text = (
            f"this machine's name means {facts.address}, which others cannot reach: all ranks would"
            " wait for it (ROCm/MAD#228); change /etc/hosts, or set JAX_COORDINATOR_ADDRESS"
        )
        set_by_hand = "JAX_COORDINATOR_ADDRESS" in facts.environment
        return Finding("address", "FAIL" if several and not set_by_hand else "warn", text)
    return Finding("address", "ok", facts.address)


def proxies(facts: Facts) -> Finding:
    """What processes say to each other takes no detour."""
    names = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
    found = [name for name in facts.environment if name.lower() in names]
    if not found:
        return Finding("proxies", "ok", "none")
    text = f"{', '.join(sorted(found))}: gRPC, by which processes meet, goes through them too"
    if "no_proxy" in map(str.lower, facts.environment):
        return Finding("proxies", "ok", f"{text}, but for no_proxy")
    several = _processes(facts.environment) > 1
    advice = "; set no_proxy to the cluster's names and addresses"
    return Finding("proxies", "warn" if several else "ok", text + advice)


def links(facts: Facts) -> Finding:
    """How fast devices talk; on GPUs, fast enough for NVLink or PCIe."""
    if not facts.links:
        return Finding("links", "ok", "not measured: fewer than two devices, or not asked for")
    text = "; ".join(
        f"{link.what} {link.latency * 1e6:,.0f} us, {link.bandwidth / 1e9:,.1f} GB/s"
        for link in facts.links
    )
    slowest = min(link.bandwidth for link in facts.links)
    if facts.platform == "gpu" and slowest < 5e9:
        return Finding("links", "warn", f"{text}: slower than PCIe; peer access may be off")
    return Finding("links", "ok", text)


def memory(facts: Facts) -> Finding:
    """Cores and memory of the host."""
    text = f"{facts.cores} cores, {facts.memory / _GIB:,.1f} GiB of memory"
    if facts.memory < 4 * _GIB:
        return Finding("host", "warn", f"{text}: saves copy a state to the host, and need more")
    return Finding("host", "ok", text)


def shared_memory(facts: Facts) -> Finding:
    """NCCL's room for processes of one machine."""
    if facts.shared_memory is None:
        return Finding("/dev/shm", "ok", "there is none")
    text = f"{facts.shared_memory / _GIB:,.1f} GiB free"
    if facts.platform == "gpu" and facts.shared_memory < _GIB:
        advice = "NCCL needs about 1 GiB; in a container, --shm-size=8g or --ipc=host"
        return Finding("/dev/shm", "warn", f"{text}: {advice}")
    return Finding("/dev/shm", "ok", text)


def disk(facts: Facts) -> Finding:
    """Room for checkpoints."""
    text = f"{facts.disk / _GIB:,.1f} GiB free where runs are written"
    if facts.disk < _GIB:
        return Finding("disk", "FAIL", f"{text}: too little for checkpoints")
    return Finding("disk", "warn" if facts.disk < 10 * _GIB else "ok", text)


def open_files(facts: Facts) -> Finding:
    """Checkpoints and data open many files at once."""
    text = f"{facts.open_files:,} at once"
    if facts.open_files < 1024:
        return Finding("open files", "FAIL", f"{text}: expected 1,024 at least; ulimit -n 65536")
    return Finding("open files", "warn" if facts.open_files < 4096 else "ok", text)


def cache(facts: Facts) -> Finding:
    """What is in the cache of compiled programs is run: nobody else may write there."""
    found = facts.cache
    if found is None:
        text = "no cache of compiled programs; JAX_COMPILATION_CACHE_DIR names a folder for one"
        return Finding("cache", "ok", text)
    if not found.is_own or found.others_write:
        text = f"{found.path} is open to others, and what it holds is run here; chmod 700 your own"
        return Finding("cache", "FAIL", text)
    return Finding("cache", "ok", f"{found.path}{'' if found.exists else ', not there yet'}")


def device_memory(facts: Facts) -> Finding:
    """How much of a GPU's memory XLA takes."""
    name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    if facts.platform != "gpu":
        return Finding("reserved", "ok", "nothing")
    share = facts.environment.get(name)
    if share is None:
        return Finding("reserved", "warn", f"75 % of each GPU's memory; {name}=.92 takes more")
    return Finding("reserved", "ok", f"{name}={share}")


def compiler_options(facts: Facts) -> Finding:
    """What XLA would be told."""
    told = preset(facts.platform, facts.versions.get("jax") or "0.10.2", latency=0)
    shown = ", ".join(f"{name}={value}" for name, value in told.items()) or "none"
    return Finding("options", "ok", shown)


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
    packages, devices, hidden_devices, own_address, proxies, links, memory, shared_memory, disk,
    open_files, cache, device_memory, compiler_options,
)  # fmt: skip
"""All checks, in the order in which they are told."""


def examine(facts: Facts) -> list[Finding]:
    """What all checks say of a machine."""
    return [check(facts) for check in CHECKS]


def _processes(environment: Mapping[str, str]) -> int:
    """How many processes a launcher has asked for."""
    for name in ("JAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return 1


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
