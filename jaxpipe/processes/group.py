"""All processes of a run, as one of them sees them."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jaxpipe.errors import MeshError, ProcessError, first_few
from jaxpipe.processes.ending import LOST, Ending, end_alone
from jaxpipe.processes.facts import differences
from jaxpipe.processes.member import Member
from jaxpipe.processes.rows import Rows, row_problems, rows_of
from jaxpipe.processes.stuck import Stuck, Witness


class Processes:
    """This process and the others; it may be the only one.

    Attributes:
      index: of this process, from 0.
      count: how many there are.
      heartbeat: seconds of silence after which the others end; None if there are none.
    """

    def __init__(
        self,
        member: Member | None = None,
        patience: float = 300.0,
        heartbeat: float | None = None,
    ) -> None:
        """The group that a member belongs to; without one, a group of one.

        Args:
          member: this process.
          patience: seconds to wait for others where all have to come.
          heartbeat: see above.
        """
        self._member, self._patience, self._exchanged = member, patience, 0
        self.heartbeat = heartbeat
        self.index = 0 if member is None else member.place.index
        self.count = 1 if member is None else member.place.count

    def witnessed(self, witness: Witness | None) -> None:
        """Lets a witness say to all others what this one is doing; None: no longer."""
        if self._member is not None:
            self._member.witness = witness

    def end_stuck(self, text: str, witness: Witness) -> NoReturn:
        """Ends this process, which is stuck, and all others, with exit code 1; from any thread.

        Args:
          text: what is the matter with it.
          witness: told before the end, here; in the other processes, their own.
        """
        if self._member is not None:
            self._member.fail(Ending(LOST, text), stuck=True)
        stuck = Stuck(0, f"the process {text}", {})
        end_alone(f"this process {text}", lambda: witness.found(stuck))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.index == 0

    @property
    def ending(self) -> bool:
        """Whether this process is about to end because it, or another one, has to."""
        return self._member is not None and self._member.ending

    def share(self, num_devices: int) -> int:
        """How many of all devices are this process's.

        Raises:
          MeshError: they cannot be shared evenly.
        """
        if num_devices % self.count:
            raise MeshError(
                f"{num_devices} devices cannot be shared by {self.count} processes; expected a"
                f" multiple of {self.count}. Change pipeline.ranks x pipeline.data, or the number"
                " of processes."
            )
        return num_devices // self.count

    def exchange(self, value: Any, what: str, patience: float | None = None) -> list[Any]:
        """What each process says, in their order; waits for all, and all call it together.

        Args:
          value: this process's, which JSON can hold; all of them together 4 MB at most.
          what: that whoever does not come did not do; all end then, and it is named.
          patience: seconds to wait, if not as many as usual.
        """
        if self._member is None:
            return [value]
        self._exchanged += 1
        timeout = self._patience if patience is None else patience
        why = f"did not {what} within {timeout:g} s"
        return self._member.gather(f"exchange {self._exchanged}", value, timeout=timeout, why=why)

    def compare(self, facts: Mapping[str, str], patience: float | None = None) -> None:
        """Waits until all processes are here, and compares what each says; all call it together.

        Args:
          facts: what this process says.
          patience: seconds to wait, if not as many as usual.

        Raises:
          ProcessError: they differ; says which process in what. What most processes have is
            expected, or else what process 0 has.
        """
        # A process that still reads its text, or makes its model, is late but not lost.
        found = differences(self.exchange(dict(facts), "come to where the others wait", patience))
        if found:
            lines = "\n  ".join(found)
            raise ProcessError(
                f"the processes do not run the same thing:\n  {lines}\nStart all of them with the"
                " same code, packages, text and configuration."
            )

    def compare_rows(self, rows: slice, batches: Sequence[Mapping[str, Any]]) -> None:
        """Checks that processes give the same rows where they are to, and others where not.

        All call it together, before they train.

        Args:
          rows: which rows of each batch are this process's, from `Engine.local_rows`.
          batches: some, of which this process has arrays `[its rows, ...]`; two will do.

        Raises:
          ProcessError: two processes read the same shard, for example.
        """
        if self.count == 1:
            return
        everybody = self.exchange(rows_of(rows, batches), "show its rows")
        if found := row_problems([Rows(*said) for said in everybody]):
            lines = "\n  ".join(first_few(found))
            raise ProcessError(
                f"processes do not give the rows of a batch that they are to give:\n  {lines}\nGive"
                " each process the rows that Engine.local_rows says."
            )

    def wait(self, patience: float | None = None) -> None:
        """Waits until all processes are here, as `compare` does; all call it together."""
        self.compare({}, patience)

    def stop_together(self, asked: bool) -> bool:
        """Whether all are to stop now. All call it once after each step.

        Args:
          asked: whether this process was asked to stop. If any one was, all get True after the
            same step.
        """
        return asked if self._member is None else self._member.stop_together(asked)


ALONE = Processes()
