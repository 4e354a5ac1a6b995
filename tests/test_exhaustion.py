"""Too little memory: the error says what is needed where, and what to do."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from pretended import a_config, pretended, trained

import jaxpipe as jp
from jaxpipe.errors import OutOfMemoryError
from jaxpipe.exhaustion import devices_in_words, memory_explained

# As XLA says it on GPUs.
SAID = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes."


def test_the_error_says_what_a_step_needs_and_what_to_do():
    layers = [jp.LayerSpec(nn.Dense, 512) for _ in range(2)]
    model = jp.PipelineModule(layers, jp.losses.mean_squared_error)
    engine = jp.initialize(
        model, mesh=jp.make_mesh(pipe=2), optimizer=optax.adam(1e-3), num_microbatches=2
    )
    batch = dict(inputs=np.zeros((4, 512), np.float32), targets=np.zeros((4, 512), np.float32))
    with pytest.raises(OutOfMemoryError) as caught, memory_explained(engine, batch):
        raise jax.errors.JaxRuntimeError(SAID + "\n\nmore")
    told = str(caught.value)
    assert "trying to allocate 8589934592 bytes.\n" in told and caught.value.exit_code == 2
    # 512 x 512 + 512 floats a layer, one layer a device; Adam has two such, and gradients are one.
    assert "parameters 1.00 MiB, optimizer 2.00 MiB" in told and "gradients 1.00 MiB" in told
    assert "more pipeline.ranks or pipeline.microbatches, pipeline.remat, pipeline.zero" in told
    assert isinstance(caught.value.__cause__, jax.errors.JaxRuntimeError)


def test_other_errors_of_xla_stay_what_they_are():
    engine: Any = pretended()
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory_explained(engine, {}):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_a_run_ends_with_it(tmp_path, text):
    def train_batch(state, batch):
        raise jax.errors.JaxRuntimeError(SAID)

    engine: Any = pretended()
    with pytest.raises(OutOfMemoryError, match="a device has too little memory"):
        trained(a_config(tmp_path), engine._replace(train_batch=train_batch))
    assert not (tmp_path / "runs" / "run" / "crashes.jsonl").exists()  # a setting is wrong


class Device(NamedTuple):
    """As a GPU would be; devices of a CPU do not say how full they are."""

    name: str
    used: int
    process_index: int = 0

    def memory_stats(self) -> dict[str, int]:
        return {"peak_bytes_in_use": self.used, "bytes_limit": 80 * 2**30}

    def __str__(self) -> str:
        return self.name


def test_devices_say_how_full_they_are():
    mesh = jp.make_mesh(pipe=2, data=2)
    shown = [Device(f"gpu:{i}", i * 2**30, process_index=i // 3) for i in range(4)]
    assert list(devices_in_words(mesh, (0, 1, 0), shown)) == [
        "rank 0 (stages 0, 2), gpu:0: 0 bytes in use at most, of 80.00 GiB.",
        "rank 0 (stages 0, 2), gpu:1: 1.00 GiB in use at most, of 80.00 GiB.",
        "rank 1 (stage 1), gpu:2: 2.00 GiB in use at most, of 80.00 GiB.",
    ]
    assert list(devices_in_words(mesh, (0, 1))) == []
