"""Where a run takes place: versions, devices, the state of the code, and what variables say."""

import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxpipe.processes.facts import code_facts

_TOLD = re.compile(r"(JAX|JAXPIPE|XLA|LIBTPU|TPU|NCCL|CUDA|TF_XLA|TF_CPP|OMP|SLURM|WANDB)_")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|AUTH", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")  # user:password in an address
HIDDEN = "(hidden)"


def environment(processes: int = 1) -> dict[str, Any]:
    """What JSON can hold of it; of a process that is one of so many.

    Variables are those of JAX, XLA, the devices and the launcher; what looks like a secret, by its
    name or as a login in an address, is hidden.
    """
    devices = Counter((device.platform, device.device_kind) for device in jax.devices())
    return {
        "versions": code_facts(),
        "platform": platform.platform(),
        "host": platform.node(),
        "command": [_hide_login(word) for word in sys.argv],
        "folder": os.getcwd(),
        "git": _git(Path.cwd()),
        "processes": processes,
        "devices": [
            {"platform": where, "kind": kind, "count": count}
            for (where, kind), count in devices.items()
        ],
        "variables": told_variables(os.environ),
    }


def told_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Those that may tell why a run does as it does, with secrets hidden.

    >>> told_variables({"XLA_FLAGS": "--a", "HOME": "/me", "WANDB_API_KEY": "abc"})
    {'WANDB_API_KEY': '(hidden)', 'XLA_FLAGS': '--a'}
    """
    return {
        name: HIDDEN if _SECRET.search(name) else _hide_login(value)
        for name, value in sorted(variables.items())
        if _TOLD.match(name)
    }


def _hide_login(text: str) -> str:
    return _LOGIN.sub(HIDDEN, text)


def _git(folder: Path) -> dict[str, Any] | None:
    """The commit that the folder is at, and whether its files differ; None outside of git."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        commit = ask("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
