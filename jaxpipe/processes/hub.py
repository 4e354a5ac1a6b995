"""Where all processes meet: threads in process 0 that pass on what each process says.

A process says hello once, then gives a sign of life every now and then. What else it may say is in
`Hub._take`. Whoever falls silent, or whose connection ends before all have said that they are done,
is lost, and everybody is told.
"""

import contextlib
import socket
import threading
import time
from typing import Any

from jaxpipe.errors import ProcessError
from jaxpipe.processes.ending import LOST
from jaxpipe.processes.stuck import listed
from jaxpipe.processes.wire import Wire

END = "end"
_TO_END = 2.0  # seconds that a silent process has to end by itself


class Hub:
    """The meeting point, open from its making on until the process ends."""

    def __init__(self, listener: socket.socket, count: int, timeout: float, beat: float) -> None:
        """Starts to listen.

        Args:
          listener: a socket that listens.
          count: how many processes there are.
          timeout: seconds of silence after which a process is lost.
          beat: seconds between signs of life to the others.
        """
        self._listener, self._count, self._timeout, self._beat = listener, count, timeout, beat
        self._lock = threading.Lock()
        self._wires: dict[int, Wire] = {}
        self._gathered: dict[str, dict[int, Any]] = {}
        self._doing: dict[int, list[Any]] = {}
        self._failure: dict[str, Any] | None = None
        self._stopped_by: int | None = None
        self._over = False
        for work in (self._accept, self._live):
            threading.Thread(target=work, daemon=True, name=f"jaxpipe hub{work.__name__}").start()

    def wait_alone(self, seconds: float) -> None:
        """Waits until all other processes have hung up, for so long at most."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with self._lock:
                if not set(self._wires) - {0}:
                    return
            time.sleep(0.01)

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _live(self) -> None:
        while True:
            time.sleep(self._beat)
            self._tell(beat=True)

    def _serve(self, connection: socket.socket) -> None:
        """One process's connection, from its first to its last message."""
        wire = Wire(connection, self._timeout)
        index = self._welcome(wire)
        if index is None:
            wire.close()
            return
        why = "its connection ended: it was killed, it crashed, or it left early"
        try:
            while (message := wire.receive()) is not None:
                self._take(index, message)
        except TimeoutError:
            self._fail(
                index, LOST, f"is lost; it gave no sign of life for {self._timeout:g} s", stuck=True
            )
            # Once process 0 has gone JAX aborts those that are left: until then `wait_alone` gives
            # this one the time to end by itself.
            time.sleep(_TO_END)
        except (ProcessError, KeyError) as error:
            why = f"it is not understood: {error}"
        with self._lock:
            self._wires.pop(index, None)
        wire.close()
        if not self._over:
            self._fail(index, LOST, f"is lost; {why}")

    def _welcome(self, wire: Wire) -> int | None:
        """The index of a process that may come in."""
        with contextlib.suppress(OSError, ProcessError):
            message = wire.receive() or {}
            index, count = message.get("hello"), message.get("of")
            if not isinstance(index, int):
                return None  # no process of ours
            problem = None
            if count != self._count:
                problem = f"is one of {count} processes, but process 0 one of {self._count}"
            with self._lock:
                if index in self._wires:
                    problem = "is there twice; each process needs an index of its own"
                if problem is None:
                    wire.send(welcome=index)
                    self._wires[index] = wire
            if problem is None:
                if self._failure is not None:
                    wire.send(**self._failure)
                return index
            wire.send(refused=f"process {index} {problem}")
            self._fail(index, 2, problem)
        return None

    def _take(self, index: int, message: dict[str, Any]) -> None:
        """What a process may say after its hello, besides that it lives."""
        if "beat" in message:
            with self._lock:
                if message.get("doing"):
                    self._doing[index] = message["doing"]
        elif "gather" in message:  # a value that all are to have from all
            name = message["gather"]
            with self._lock:
                values = self._gathered.setdefault(name, {})
                values[index] = message["value"]
                complete = len(values) == self._count
                self._over |= complete and name == END
            if complete:
                self._tell(gathered=name, values=[values[i] for i in range(self._count)])
        elif "late" in message:  # it has waited long enough for such values
            with self._lock:
                there = self._gathered.get(message["late"], {})
                missing = [i for i in range(self._count) if i not in there]
            if missing:
                self._fail(missing[0], LOST, message["why"], stuck=True, indices=missing)
        elif "stop" in message:  # it was asked to stop
            with self._lock:
                first, self._stopped_by = self._stopped_by is None, index
            if first:
                self._tell(stop=index)
        elif "fail" in message:
            if message.get("doing"):
                with self._lock:
                    self._doing[index] = message["doing"]
            self._fail(index, message["code"], message["fail"], stuck=message["stuck"])

    def _fail(
        self,
        index: int,
        code: int,
        text: str,
        *,
        stuck: bool = False,
        indices: list[int] | None = None,
    ) -> None:
        """Tells everybody, once, why all have to end; and what all did, if one is `stuck`."""
        with self._lock:
            if self._failure is not None:
                return
            text = f"{listed(indices or [index])} {text}"
            doing = {str(i): self._doing[i] for i in sorted(self._doing)} if stuck else {}
            self._failure = dict(failed=index, code=code, text=text, stuck=stuck, doing=doing)
        self._tell(**self._failure)

    def _tell(self, **message: Any) -> None:
        with self._lock:
            wires = dict(self._wires)
        # Process 0 last: it may end when it hears of a failure, and this thread with it.
        for index in sorted(wires, reverse=True):
            with contextlib.suppress(OSError):  # gone: its own thread will see that
                wires[index].send(**message)
