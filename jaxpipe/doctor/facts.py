"""What a machine says of itself; gathered once, so that checks are functions of it."""

import dataclasses
import os
import platform
import resource
import shutil
import socket
import stat
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jaxpipe.doctor.links import Link, measure_links

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tensorstore"),
    *("safetensors", "tyro", "jax-cuda12-plugin", "jax-cuda13-plugin"),
    *("nvidia-nccl-cu12", "nvidia-nccl-cu13", "libtpu"),
)


@dataclasses.dataclass(frozen=True)
class Cache:
    """The folder of compiled programs.

    Attributes:
      path: where it is.
      exists: whether it is there.
      is_own: whether it belongs to this user.
      others_write: whether other users may write into it.
    """

    path: str
    exists: bool
    is_own: bool = True
    others_write: bool = False


@dataclasses.dataclass(frozen=True)
class Facts:
    """A machine.

    Attributes:
      python: its version.
      versions: {package: version, or None where it is not installed}.
      environment: its variables.
      address: what its own name resolves to; empty where it does not.
      platform: of JAX's devices; empty where there are none.
      kinds: of the devices, one each.
      device_memory: bytes of each device; None where it does not say.
      problem: why JAX has no devices.
      links: between neighbours, measured; none where there are no two devices.
      cores: that this process may use.
      memory: bytes of the machine, or of its container where that has less.
      shared_memory: free bytes in /dev/shm; None where there is none.
      disk: free bytes where runs are written.
      open_files: how many files may be open at once.
      cache: of compiled programs, if one is asked for.
    """

    python: str
    versions: Mapping[str, str | None]
    environment: Mapping[str, str]
    address: str
    platform: str
    kinds: tuple[str, ...]
    device_memory: int | None
    problem: str
    links: tuple[Link, ...]
    cores: int
    memory: int
    shared_memory: int | None
    disk: int
    open_files: int
    cache: Cache | None


def gather(runs: Path, *, links: bool = True) -> Facts:
    """Looks at this machine; starts JAX's devices.

    Args:
      runs: where runs are written, or will be.
      links: whether to measure them; some seconds.
    """
    import jax  # the only part of this that takes long

    problem, devices = "", []
    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
    memory = (devices[0].memory_stats() or {}).get("bytes_limit") if devices else None
    return Facts(
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
        environment=dict(os.environ),
        address=_address(),
        platform=devices[0].platform if devices else "",
        kinds=tuple(device.device_kind for device in devices),
        device_memory=memory,
        problem=problem,
        links=measure_links(devices) if links and len(devices) > 1 else (),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        memory=_memory(),
        shared_memory=_free(Path("/dev/shm")),
        disk=_free(runs) or 0,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        cache=cache_at(getattr(jax.config, "jax_compilation_cache_dir", None)),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""


def _memory() -> int:
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup") / name
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            found.append(int(text))
    return min(found)


def _free(path: Path) -> int | None:
    """Free bytes in a folder, or in the nearest one above it that is there."""
    if path.is_absolute() and path.parts[1:2] == ("dev",) and not path.exists():
        return None
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def cache_at(path: str | None) -> Cache | None:
    """The cache of compiled programs in a folder, or at an address; None for none."""
    if not path:
        return None
    if "://" in path or not Path(path).exists():
        return Cache(path, exists="://" in path)
    found = Path(path).stat()
    others = bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return Cache(path, True, found.st_uid == os.getuid(), others)
