"""Makes one CPU look like several devices, for JAX processes that want more than there are."""

import os

# Simulated devices share the cores of one machine: a slow meeting is no deadlock.
_PATIENCE = {
    "xla_cpu_collective_call_warn_stuck_timeout_seconds": 120,
    "xla_cpu_collective_call_terminate_timeout_seconds": 600,
}


def simulate_devices(num_devices: int) -> None:
    """Lets the CPU platform have `num_devices` devices. Call it before JAX starts a backend.

    Machines whose default platform is another one (a GPU) are not affected. What the user has set,
    by `XLA_FLAGS` or `JAX_NUM_CPU_DEVICES`, stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    missing = [f"--{name}={value}" for name, value in _PATIENCE.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in flags
    if not chosen:
        import jax  # not before: commands that need none of it start in a moment

        jax.config.update("jax_num_cpu_devices", num_devices)
