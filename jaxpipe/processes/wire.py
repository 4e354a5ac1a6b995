"""Messages between two processes: a JSON object on each line of a TCP connection."""

import contextlib
import json
import socket
import threading
from typing import Any

from jaxpipe.errors import ProcessError

_LONGEST = 2**22  # bytes of a line


class Wire:
    """One end of a connection. Any thread may send; one receives."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        """Takes over a connected socket.

        Args:
          connection: closed by `close`.
          timeout: seconds of silence after which `receive` gives up.
        """
        connection.settimeout(timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._lines = connection, connection.makefile("rb")
        self._sending = threading.Lock()

    def send(self, **message: Any) -> None:
        """Sends a message. Raises `OSError` if the other end is gone."""
        data = json.dumps(message).encode() + b"\n"
        with self._sending:
            self._socket.sendall(data)

    def receive(self) -> dict[str, Any] | None:
        """The next message, or None once the other end is gone.

        Raises:
          TimeoutError: nothing came for so long.
          ProcessError: what came is no message.
        """
        try:
            line = self._lines.readline(_LONGEST)
        except TimeoutError:
            raise
        except (OSError, ValueError):  # reset by the other end, or closed at this one
            return None
        if not line.endswith(b"\n"):
            return None
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise ProcessError(f"got {line[:40]!r}, expected words of another process of jaxpipe.")
        return message

    def close(self) -> None:
        """Ends the connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes whoever receives
        self._socket.close()
        self._lines.close()
