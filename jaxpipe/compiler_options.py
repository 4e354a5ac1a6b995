"""What XLA is told about an engine's programs, by platform, version of JAX and schedule."""

from collections.abc import Mapping

CompilerOptions = dict[str, bool | int | str]

# For schedules with latency, whose permutes are to run beside a tick's work. What each option does,
# and what XLA makes of a step with and without it, is in docs/decisions/0008.
OVERLAP: CompilerOptions = {
    # Ahead and back may both be on their way; a vee has two of each.
    "xla_gpu_experimental_parallel_collective_overlap_limit": 4,
    # It counts a guard, which is a loop, as no work to run beside.
    "xla_gpu_enable_analytical_sol_latency_estimator": False,
}
# These look up a tick's integers beside other work: the scheduler then prefers hiding that little.
ASYNC_SLICES_SINCE = (0, 11)
NO_ASYNC_SLICES: CompilerOptions = {
    "xla_disable_hlo_passes": "dynamic-slice-copy-fusion-async-wrapper"
}


def preset(platform: str, version: str, latency: int) -> CompilerOptions:
    """The options for programs of a schedule.

    Args:
      platform: of the devices, "gpu" or another; there are options for GPUs only.
      version: of JAX.
      latency: of the schedule; with latency, permutes are to run beside work.

    >>> preset("gpu", "0.12.0", latency=0)
    {'xla_gpu_enable_latency_hiding_scheduler': True}
    >>> preset("cpu", "0.12.0", latency=1)
    {}
    """
    if platform != "gpu":
        return {}
    options: CompilerOptions = {"xla_gpu_enable_latency_hiding_scheduler": True}
    if latency:
        options |= OVERLAP
        if tuple(map(int, version.split(".")[:2])) >= ASYNC_SLICES_SINCE:
            options |= NO_ASYNC_SLICES
    return options


def merged(
    options: CompilerOptions, wanted: Mapping[str, bool | int | str | None] | None
) -> CompilerOptions:
    """A preset with what the user wants over it; None takes an option out.

    >>> merged({"a": 1, "b": 2}, {"b": 3, "a": None, "c": True})
    {'b': 3, 'c': True}
    """
    both = options | dict(wanted or {})
    return {name: value for name, value in both.items() if value is not None}
