"""What data ranks share of a rank's state, rather than each holding all of it (ZeRO)."""

from dataclasses import dataclass
from typing import Literal

from jaxpipe.errors import MeshError


@dataclass(frozen=True)
class Zero:
    """How much of a rank's state is cut over the `data` axis (arXiv:1910.02054).

    Attributes:
      stage: 0, nothing; 1, the optimizer's state; 2, gradients too; 3, parameters too.
      per: how often what is cut in stages 2 and 3 is put together. `"step"`: parameters are
        gathered before the first tick, and gradients summed and scattered after the last one, in
        few large calls; while the schedule runs, both are whole. `"use"`: each action gathers the
        weights of its stage and scatters the gradients that it makes, so that no more than one
        stage's are ever whole; it talks more.

    Raises:
      MeshError: there is no such stage, or `per` has nothing to say.
    """

    stage: int = 0
    per: Literal["step", "use"] = "step"

    def __post_init__(self):
        if self.stage not in (0, 1, 2, 3):
            raise MeshError(f"zero stage {self.stage!r}; expected 0, 1, 2 or 3.")
        if self.per not in ("step", "use"):
            raise MeshError(f"zero per={self.per!r}; expected 'step' or 'use'.")
        if self.per == "use" and self.stage < 2:
            raise MeshError(
                f"zero stage {self.stage} with per='use': it cuts nothing that is used within a"
                " step. Use stage 2 or 3, or per='step'."
            )

    @property
    def cuts_state(self) -> bool:
        """Whether each data rank holds a part of the optimizer's state."""
        return self.stage >= 1

    @property
    def cuts_gradients(self) -> bool:
        """Whether each data rank holds a part of the gradients after the step."""
        return self.stage >= 2

    @property
    def cuts_parameters(self) -> bool:
        """Whether each data rank holds a part of the parameters at rest."""
        return self.stage >= 3
