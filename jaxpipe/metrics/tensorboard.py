"""Metrics as TensorBoard events."""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import (  # made when it is imported
    Event,  # pyright: ignore[reportAttributeAccessIssue]
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.summary import scalar


class TensorBoard:
    """Writes an events file into a folder.

    It writes in the calling thread: tensorboardX's own `SummaryWriter` writes in another one
    through a queue of ten, and if that thread dies of a full disk, the eleventh write waits
    for ever.
    """

    def __init__(self, folder: Path, *, resume_step: int = 0) -> None:
        """Starts a file.

        Args:
          folder: where; TensorBoard reads all events files of a folder as one run.
          resume_step: the step that the run goes on from; TensorBoard then hides what an earlier
              file holds of later steps.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        if resume_step:
            restart = SessionLog(status=SessionLog.START)
            self._writer.write_event(
                Event(wall_time=time.time(), step=resume_step + 1, session_log=restart)
            )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one event with all scalars and flushes it."""
        for name, value in scalars.items():
            event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
