"""What each kernel runs first: a `%%bash` that fails where its script fails."""

import subprocess

from IPython.core.magic import register_cell_magic


@register_cell_magic
def bash(line: str, cell: str) -> None:
    """Runs a script up to its first command that fails. IPython's own cuts lines into pieces."""
    command = ["bash", "-euo", "pipefail", "-c", cell]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, end="")
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}{line}")
