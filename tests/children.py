"""How XLA compiles what tests run, here and in the processes that they start."""

import os
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

# Tests compile thousands of programs that then run for milliseconds. Without LLVM's optimisations,
# and with XLA's older emitter of loops, it takes two fifths of the time; HLO passes, which decide
# on fusions, copies and collectives, are the same. Newer XLAs have no other emitter, and end a
# process that is given a flag they do not know: there tests compile as users do.
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
PATIENCE = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120",
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
OPTIMIZED = "JAXPIPE_TESTS_OPTIMIZED"  # set: programs are compiled as users compile them


def compile_flags() -> str:
    """XLA's flags for every process of the tests."""
    quick = version("jaxlib").startswith("0.10.") and not os.environ.get(OPTIMIZED)
    return " ".join([*(QUICK if quick else ()), *PATIENCE])


def environment(**variables: object) -> dict[str, str]:
    """A child's: it imports this tree and what tests share, and simulates devices itself.

    `variables` are its own.
    """
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    theirs = dict(PYTHONPATH=path, XLA_FLAGS=compile_flags()) | variables
    return os.environ | {name: str(value) for name, value in theirs.items()}
