"""A process among others: says that it lives, listens for what the hub passes on, ends with them.

Two threads do that. They run while the main thread computes, also where it waits in a collective
for a process that is gone: there no exception would ever be raised.
"""

import contextlib
import os
import socket
import threading
import time
from typing import Any, NoReturn

from jaxpipe.errors import ProcessError
from jaxpipe.processes.ending import LOST, Ending, flush, last_resort, say
from jaxpipe.processes.hub import Hub
from jaxpipe.processes.launch import Place
from jaxpipe.processes.stuck import Doing, Stuck, Witness, doing_of, where_all_are
from jaxpipe.processes.wire import Wire

_LAST_WORDS = 2.0  # seconds for everybody to hear why all end
_STOP = "stop"


class Member:
    """This process, as the others see it.

    Attributes:
      place: which process this is.
      witness: asked what this process is doing, with each sign of life; told when one is stuck.
    """

    def __init__(self, place: Place, wire: Wire, hub: Hub | None, beat: float) -> None:
        """Starts to listen.

        Args:
          place: which process this is.
          wire: to the hub.
          hub: in process 0.
          beat: seconds between signs of life.
        """
        self.place, self._wire, self._hub, self._beat = place, wire, hub, beat
        self._news = threading.Condition()
        self._gathered: dict[str, list[Any]] = {}
        self._ending = self._left = self._asked = False
        self._told = threading.Event()
        self._questions = 0  # how often `stop_together` was called
        self._stopped_by: int | None = None
        self.witness: Witness | None = None
        for work in (self._listen, self._live):
            name = f"jaxpipe member{work.__name__}"
            threading.Thread(target=work, daemon=True, name=name).start()

    def gather(self, name: str, value: Any, *, timeout: float, why: str | None = None) -> list[Any]:
        """Everybody's values, in the order of processes; waits for them.

        Args:
          name: of this exchange; all use the same, and none twice.
          value: this process's, which JSON can hold.
          timeout: seconds to wait.
          why: what the missing processes did not do, to follow their names, when all end then.

        Raises:
          TimeoutError: not all have come, and there is no `why`.
        """
        self._wire.send(gather=name, value=value)
        with self._news:
            if self._news.wait_for(lambda: name in self._gathered, timeout):
                return self._gathered.pop(name)
        if why is None:
            raise TimeoutError(f"not all processes have come to {name!r}")
        self._wire.send(late=name, why=why)
        time.sleep(_LAST_WORDS)  # the hub says who is missing, and this process ends
        raise ProcessError(f"process {self.place.index} has waited for {name!r} in vain.")

    def stop_together(self, asked: bool) -> bool:
        """Whether this is the step after which all stop. All call it once after each step.

        When somebody was asked to stop, each process's listener says how often its main thread has
        come here; they stop at the next time after the last of these. No step costs a message.
        """
        if asked and not self._asked:
            self._asked = True
            self._wire.send(stop=True)
        with self._news:
            self._questions += 1
            if self._stopped_by is None:
                return False
            # The listeners of all processes answer, whatever their main threads do.
            self._news.wait_for(lambda: _STOP in self._gathered)
            return self._questions > max(self._gathered[_STOP])

    @property
    def ending(self) -> bool:
        """Whether this process is about to end by itself, or with another one."""
        return self._ending

    def leave(self) -> None:
        """Hangs up; all have said that they are done."""
        self._left = True
        if self._hub is not None:
            self._hub.wait_alone(_LAST_WORDS)
        self._wire.close()

    def fail(self, ending: Ending, *, stuck: bool = False) -> NoReturn:
        """Ends this process, and with it all others; they show the same text.

        Args:
          ending: how.
          stuck: whether the reason is that it does not go on.
        """
        with self._news:
            someone_else = self._ending
            self._ending = True
        if someone_else:
            threading.Event().wait()  # the listener is about to end this process
        text = f"process {self.place.index} {ending.text}"
        say(text)
        with contextlib.suppress(OSError):
            self._wire.send(fail=ending.text, code=ending.code, stuck=stuck, doing=self._doing())
            self._told.wait(_LAST_WORDS)
        if stuck and not self._told.is_set():  # nobody has listened
            self._write_down(Stuck(self.place.index, text, {}))
        self._exit(ending.code)

    def _live(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                time.sleep(self._beat)
                self._wire.send(beat=True, doing=self._doing())

    def _doing(self) -> Doing | None:
        return self.witness.doing() if self.witness else None

    def _listen(self) -> None:
        why, stuck = "its connection ended: it was killed, or it crashed", False
        try:
            while (message := self._wire.receive()) is not None:
                self._take(message)
        except TimeoutError:
            why, stuck = "it gave no sign of life", True
        except ProcessError as error:
            why = f"it is not understood: {error}"
        if not self._left:
            text = f"process 0 is lost; {why}"
            self._end(LOST, text, Stuck(0, text, {}) if stuck else None)

    def _take(self, message: dict[str, Any]) -> None:
        if "gathered" in message:
            with self._news:
                self._gathered[message["gathered"]] = message["values"]
                self._news.notify_all()
        elif "stop" in message:
            with self._news:
                self._stopped_by = message["stop"]
                self._wire.send(gather=_STOP, value=self._questions)
            if self._stopped_by != self.place.index:
                say(f"process {self._stopped_by} was asked to stop: stopping with it")
        elif "failed" in message:
            stuck = Stuck(message["failed"], message["text"], doing_of(message["doing"]))
            self._end(message["code"], message["text"], stuck if message["stuck"] else None)

    def _end(self, code: int, text: str, stuck: Stuck | None = None) -> None:
        """Ends this process because of another one, unless it is about to end by itself."""
        with self._news:
            already, self._ending = self._ending, True
        if not already:
            say(f"{stuck or text}\njaxpipe: process {self.place.index} ends with it")
        elif stuck and stuck.doing:
            say("\n".join(["when last heard of", *where_all_are(stuck.doing)]))
        if stuck:
            last_resort(2 * _LAST_WORDS)
            self._write_down(stuck)
        self._told.set()
        if not already:
            self._exit(code)

    def _write_down(self, stuck: Stuck) -> None:
        if self.witness is not None:
            with contextlib.suppress(Exception):  # it is to end, whatever happens
                self.witness.found(stuck)

    def _exit(self, code: int) -> NoReturn:
        """Ends at once: the interpreter's own way out would wait for the other processes."""
        last_resort(2 * _LAST_WORDS)
        flush()
        if self._hub is not None:
            self._hub.wait_alone(_LAST_WORDS)
        os._exit(code)


def connect(
    place: Place, hub: Hub | None, *, timeout: float, beat: float, patience: float
) -> Member:
    """Joins the others at the hub.

    Args:
      place: which process this is.
      hub: in process 0.
      timeout: seconds of silence after which process 0 is lost.
      beat: seconds between signs of life.
      patience: seconds to wait for the hub.

    Raises:
      ProcessError: there is no hub, or it does not know this process.
    """
    host = place.host.strip("[]") if hub is None else "localhost"
    deadline = time.monotonic() + patience
    while True:
        try:
            wire = Wire(socket.create_connection((host, place.port), timeout=5), timeout)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise ProcessError(
                    f"process {place.index} of {place.count} cannot reach process 0 at"
                    f" {place.address}: {error}. Start process 0 there, or correct the address."
                    f"{place.hint}"
                ) from None
            time.sleep(0.1)
    try:
        wire.send(hello=place.index, of=place.count)
        answer = wire.receive() or {}
    except (OSError, ProcessError) as error:
        answer = {"refused": str(error)}
    if "welcome" not in answer:
        wire.close()
        reason = answer.get("refused", "the connection ended")
        raise ProcessError(
            f"process {place.index} of {place.count} is not let in at {place.address}: {reason}"
        )
    return Member(place, wire, hub, beat)
