"""What a launcher says: which process this is, of how many, and where process 0 is to be found.

JAX can ask SLURM, Open MPI and Kubernetes itself, but does not tell what it learned before it has
connected, and a connection that fails ends the process. So the same variables are read here.
"""

import contextlib
import ipaddress
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from jaxpipe.errors import ProcessError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# As JAX does it: the last ports, where neither services nor most connections have theirs.
_FIRST_PORT, _NUM_PORTS = 2**16 - 2**12, 2**12


@dataclass(frozen=True)
class Launch:
    """How processes find each other. What is left out is looked up in the environment."""

    address: str | None = None
    """Where process 0 listens, HOST:PORT, the same for all processes; or JAX_COORDINATOR_ADDRESS,
    or what SLURM or Open MPI say."""
    count: int | None = None
    """How many processes there are; or JAX_NUM_PROCESSES, or what SLURM or Open MPI say."""
    index: int | None = None
    """Which of them this is, from 0; or JAX_PROCESS_ID, or what SLURM, Open MPI or an indexed job
    of Kubernetes say."""
    heartbeat_timeout: float = 30.0
    """Seconds without a sign of life after which a process counts as lost."""
    start_timeout: float = 300.0
    """Seconds that processes wait for each other at the start."""


@dataclass(frozen=True)
class Place:
    """Which process this is.

    Attributes:
      address: where process 0 listens, "HOST:PORT".
      count: number of processes.
      index: this one.
      device: the only device of its machine that it is to use; None for all of them.
    """

    address: str
    count: int
    index: int
    device: int | None

    @property
    def host(self) -> str:
        """The machine of process 0."""
        return "127.0.0.1" if self.is_local else self.address.rpartition(":")[0]

    @property
    def port(self) -> int:
        """Where process 0 listens."""
        return int(self.address.rpartition(":")[2])

    @property
    def is_local(self) -> bool:
        """Whether all processes are on one machine, and nobody else needs to get in."""
        host = self.address.rpartition(":")[0].strip("[]")
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(host).is_loopback
        return host == "localhost"

    @property
    def hint(self) -> str:
        """What may keep processes from finding each other, to follow a message."""
        if not self.is_local:
            return ""
        return (
            f" On other machines {self.address} means these themselves: where there are several,"
            " give an address of process 0's that all can reach."
        )


@dataclass(frozen=True)
class _Said:
    """What a launcher says; what it leaves open is None."""

    address: str | None = None
    count: int | None = None
    index: int | None = None
    device: int | None = None


def find_place(launch: Launch, environ: Mapping[str, str]) -> Place | None:
    """Which process this is, or None if it is the only one.

    Options count more than JAX's variables, and these more than the launcher's.

    Raises:
      ProcessError: something is missing, or makes no sense.

    >>> find_place(Launch("localhost:9876", 2, 0), {})
    Place(address='localhost:9876', count=2, index=0, device=None)
    >>> find_place(Launch(), {})
    """
    said = _launcher(environ)
    given = launch.address or environ.get(ADDRESS)
    address = given or said.address
    count = _first(launch.count, _number(environ, COUNT), said.count)
    own = _first(launch.index, _number(environ, INDEX))
    index = _first(own, said.index)
    if count == 1 or (count is None and own is None and not given):
        return None
    if address is None or count is None or index is None:
        names = (("address", ADDRESS), ("count", COUNT), ("index", INDEX))
        missing = [
            f"--processes.{option} ({variable})"
            for (option, variable), value in zip(names, (address, count, index), strict=True)
            if value is None
        ]
        raise ProcessError(
            f"this is one of several processes (address {address}, count {count}, index {index}),"
            f" but the launcher does not say everything; set {' and '.join(missing)}."
        )
    if not 0 <= index < count:
        raise ProcessError(
            f"got process index {index} of {count}; expected 0 to {count - 1}. Processes are"
            " counted from 0."
        )
    place = Place(address, count, index, said.device if own is None else None)
    if not re.fullmatch(r"[^:/]+:\d+|\[.+\]:\d+", address) or not 0 < place.port < 2**16:
        raise ProcessError(f"got the address {address!r} of process 0; expected HOST:PORT.")
    return place


def _launcher(environ: Mapping[str, str]) -> _Said:
    if "SLURM_STEP_NODELIST" in environ and "SLURM_PROCID" in environ:
        return _slurm(environ)
    if "OMPI_COMM_WORLD_SIZE" in environ:
        return _open_mpi(environ)
    # An indexed job of Kubernetes may as well be a sweep: its index alone does not make a group.
    return _Said(index=_number(environ, "JOB_COMPLETION_INDEX"))


def _slurm(environ: Mapping[str, str]) -> _Said:
    first = _first_of(environ["SLURM_STEP_NODELIST"])
    job = _number(environ, "SLURM_JOB_ID") or 0
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    alone = re.fullmatch(r"1(\(x\d+\))?", tasks) is not None
    return _Said(
        f"{first}:{_FIRST_PORT + job % _NUM_PORTS}",
        _number(environ, "SLURM_NTASKS"),
        _number(environ, "SLURM_PROCID"),
        None if alone else _own_device(environ, "SLURM_LOCALID"),
    )


def _first_of(machines: str) -> str:
    """The first of a list as SLURM writes it.

    >>> [_first_of(text) for text in ("a1", "a1,b2", "a[01-15,20],b2", "a[7,9]")]
    ['a1', 'a1', 'a01', 'a7']
    """
    found = re.match(r"([^,\[]+)(?:\[(\w+))?", machines)
    return "".join(part or "" for part in found.groups()) if found else machines


def _open_mpi(environ: Mapping[str, str]) -> _Said:
    size = _number(environ, "OMPI_COMM_WORLD_SIZE")
    local_size = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE")
    address = None
    if size == local_size:  # one machine; else nobody says where process 0 is
        job = environ.get("PMIX_NAMESPACE", environ.get("OMPI_MCA_orte_hnp_uri", ""))
        address = f"localhost:{_FIRST_PORT + zlib.crc32(job.encode()) % _NUM_PORTS}"
    device = None if local_size == 1 else _own_device(environ, "OMPI_COMM_WORLD_LOCAL_RANK")
    return _Said(address, size, _number(environ, "OMPI_COMM_WORLD_RANK"), device)


def _own_device(environ: Mapping[str, str], variable: str) -> int | None:
    """The device of a process among those of its machine, unless it sees no other anyway."""
    chosen = "JAX_LOCAL_DEVICE_IDS" in environ
    visible = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return None if chosen or (visible != [""] and len(visible) == 1) else _number(environ, variable)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _number(environ: Mapping[str, str], variable: str) -> int | None:
    text = environ.get(variable)
    if text is None:
        return None
    if not text.strip().isdigit():
        raise ProcessError(f"{variable}: got {text!r}, expected a number from 0.")
    return int(text)
