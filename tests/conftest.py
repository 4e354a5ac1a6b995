"""Eight simulated devices for every test, on however few cores there are."""

import os
from pathlib import Path

import pytest
from children import compile_flags

# Eight devices share the cores of one machine: a slow meeting is no deadlock.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        compile_flags(),
    ]
)
os.environ["JAX_PLATFORMS"] = "cpu"


@pytest.fixture
def text(tmp_path) -> Path:
    """Forty small files to train on."""
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(40):
        (folder / f"m{i}.py").write_text(f"def f{i}(x):\n    return x + {i**3}\n" * 20)
    return folder
