"""Starts one of many processes, and sees to it that all of them end."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping

from jaxpipe.errors import ProcessError
from jaxpipe.processes.ending import ending_of
from jaxpipe.processes.facts import code_facts
from jaxpipe.processes.group import ALONE, Processes
from jaxpipe.processes.hub import END, Hub
from jaxpipe.processes.launch import ADDRESS, Launch, Place, find_place
from jaxpipe.processes.member import Member, connect

_BEATS = 60  # signs of life within a heartbeat timeout
_HEADSTART = 60  # seconds that JAX's own watchdogs, which abort, leave to ours
_UNEXPECTED = 1
_CONSEQUENCE = 1.0  # seconds for news of a lost process to come, when an exception may be due to it
_END_TOGETHER, _EXIT_TOGETHER = 60.0, 3.0  # seconds between the ends of the first and last process


@contextlib.contextmanager
def start_processes(
    launch: Launch | None = None, facts: Mapping[str, str] | None = None
) -> Iterator[Processes]:
    """Makes this process one of many, if it is, for as long as the `with` block runs.

    Call it before JAX starts a backend: it calls `jax.distributed.initialize`. With one process it
    does nothing. Inside, each process does the same: `jax.devices()` are everybody's, every
    function of an engine is called by all processes together, and batches are each process's own
    rows (`Engine.local_rows`).

    Whatever ends one process ends all, with the same exit code and with its cause on every standard
    error: an exception, after its traceback; a process that is killed or lost; one that leaves the
    block while others stay in it. Where there are several processes, an exception therefore does
    not leave the block: the process ends there.

    Args:
      launch: how processes find each other; by default what the environment says.
      facts: what else, besides code and versions, must be the same everywhere.

    Yields:
      All processes, as this one sees them.

    Raises:
      ProcessError: the launcher's words make no sense, or process 0 cannot be reached.
    """
    launch = Launch() if launch is None else launch
    place = find_place(launch, os.environ)
    if place is None:
        yield ALONE
        return
    member, port = _join(place, launch)
    try:
        why = f"did not come to {place.address} within {launch.start_timeout:g} s.{place.hint}"
        ports = member.gather("start", port, timeout=launch.start_timeout, why=why)
        processes = Processes(member, launch.start_timeout, launch.heartbeat_timeout)
        processes.compare(code_facts() | dict(facts or {}))
        _start_jax(place, ports[0], launch)
        yield processes
        _end_together(member, _END_TOGETHER)
    except BaseException as error:
        _end_after(error, member)
        raise
    _shut_down(member)


def _join(place: Place, launch: Launch) -> tuple[Member, int | None]:
    """This process at the hub; and in process 0, which has the hub, a port for JAX."""
    hub = free = None
    timeout, beat = launch.heartbeat_timeout, launch.heartbeat_timeout / _BEATS
    if place.index == 0:
        try:
            hub = Hub(_listen(place, place.port), place.count, timeout, beat)
        except OSError as error:
            raise ProcessError(
                f"process 0 cannot listen at {place.address}: {error}. Choose another port in"
                f" {ADDRESS} or --processes.address, the same for all processes."
            ) from None
        with _listen(place, 0) as probe:
            free = probe.getsockname()[1]
    member = connect(place, hub, timeout=timeout, beat=beat, patience=launch.start_timeout)
    return member, free


def _listen(place: Place, port: int) -> socket.socket:
    if place.is_local:
        return socket.create_server(("127.0.0.1", port))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _start_jax(place: Place, port: int, launch: Launch) -> None:
    import jax

    if jax.distributed.is_initialized():
        return
    # Ours are to speak first: JAX's watchdogs abort, and do not always say who is lost.
    patience = int(launch.heartbeat_timeout) + _HEADSTART
    # JAX's would swallow SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            f"{place.host}:{port}",
            place.count,
            place.index,
            local_device_ids=place.device,
            cluster_detection_method="deactivate",
            initialization_timeout=int(launch.start_timeout) + _HEADSTART,
            heartbeat_timeout_seconds=patience,
            coordinator_bind_address=f"{place.host if place.is_local else '[::]'}:{port}",
        )
    except RuntimeError as error:
        raise ProcessError(
            f"JAX cannot start as one of {place.count} processes: {error} Enter start_processes"
            " before anything asks for devices or makes an array."
        ) from error


def _end_together(member: Member, patience: float) -> None:
    why = f"did not end within {patience:g} s after process {member.place.index}"
    member.gather(END, None, timeout=patience, why=why)


def _end_after(error: BaseException, member: Member) -> None:
    """Ends all processes; returns where all leave at the same time by `sys.exit(0)`."""
    if isinstance(error, SystemExit) and not error.code:
        with contextlib.suppress(TimeoutError):
            member.gather(END, None, timeout=_EXIT_TOGETHER)
            _shut_down(member)
            return
    ending = ending_of(error)
    if ending.code == _UNEXPECTED:
        time.sleep(_CONSEQUENCE)  # a lost process is a better reason, and ends this one meanwhile
    member.fail(ending)


def _shut_down(member: Member) -> None:
    """After all have said that they are done."""
    import jax

    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()
    member.leave()
