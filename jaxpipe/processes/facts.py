"""What must be the same on all processes, and where it is not."""

import hashlib
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def code_facts() -> dict[str, str]:
    """What runs here: versions, and a hash of this package's own source files."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    facts = {"Python": platform.python_version(), "jaxpipe's source": digest.hexdigest()[:16]}
    return facts | {f"version of {name}": _version(name) for name in _PACKAGES}


def differences(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """Which process differs in what, a line each; what most processes have is expected.

    Where no value has a majority, process 0's is expected.

    >>> differences([{"seed": "1"}, {"seed": "1"}, {"seed": "2"}])
    ['process 2: seed: got 2, expected 1, as on process 0']
    """
    found = []
    for name in dict.fromkeys(name for some in facts for name in some):
        values = [some.get(name, "nothing") for some in facts]
        common, times = Counter(values).most_common(1)[0]
        expected = common if times * 2 > len(values) else values[0]
        of = values.index(expected)
        found += [
            f"process {index}: {name}: got {value}, expected {expected}, as on process {of}"
            for index, value in enumerate(values)
            if value != expected
        ]
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
