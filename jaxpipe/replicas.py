"""Whether devices that hold the same numbers still do.

A bit that flips in memory, or a device that computes wrongly, is seen by nobody: training goes on,
and the copies of a parameter drift apart (arXiv:2102.11245; arXiv:2407.21783, section 3.3.4, counts
such corruptions in a large run). Where several devices are to hold the same, each sums up its bits,
and the sums are compared: that reads the arrays once, and moves a number per array and device.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpipe.errors import CorruptStateError, first_few

PyTree = Any
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class Replicas:
    """Compares what the devices of a mesh hold alike.

    Args:
      mesh: of the arrays.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh, self._sums = mesh, {}

    def check(self, tree: PyTree) -> None:
        """Compares the copies of each array; all processes call it together.

        Args:
          tree: of arrays on the mesh, of any shapes and dtypes; others in it are left out.

        Raises:
          CorruptStateError: copies differ; says of which arrays, on which devices and processes.
        """
        found = self.differences(tree)
        if found:
            lines = "\n  ".join(first_few(found))
            raise CorruptStateError(
                f"devices that are to hold the same do not:\n  {lines}\nMemory, a device or a"
                " program that depends on chance has changed bits. Go on from a checkpoint; if it"
                " comes again on the same machine, leave that out."
            )

    def differences(self, tree: PyTree) -> list[str]:
        """A line for each array whose copies differ; all processes call it together."""
        paths, arrays = [], []
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            sharding = getattr(leaf, "sharding", None)
            if isinstance(sharding, NamedSharding) and sharding.mesh == self._mesh and leaf.size:
                paths.append(jax.tree_util.keystr(path, simple=True, separator="/"))
                arrays.append(leaf)
        if not arrays or self._mesh.size == 1:
            return []
        sums = self._summed(arrays)
        found = []
        for name, array, of_devices in zip(paths, arrays, sums.T, strict=True):
            found += self._odd(name, array, of_devices)
        return found

    def _summed(self, arrays: Sequence[jax.Array]) -> np.ndarray:
        """Checksums [devices, arrays]: of what each device of the mesh has of each."""
        specs = tuple(array.sharding.spec for array in arrays)  # pyright: ignore[reportAttributeAccessIssue]
        if specs not in self._sums:
            axes = self._mesh.axis_names

            def local(*parts: jax.Array) -> jax.Array:
                return jax.lax.all_gather(jnp.stack([checksum(part) for part in parts]), axes)

            self._sums[specs] = jax.jit(
                jax.shard_map(
                    local, mesh=self._mesh, in_specs=specs, out_specs=PartitionSpec(),
                    check_vma=False,
                )
            )  # fmt: skip
        return np.asarray(self._sums[specs](*arrays)).reshape(self._mesh.size, len(arrays))

    def _odd(self, name: str, array: jax.Array, sums: np.ndarray) -> list[str]:
        """The devices whose part of an array has other bits than the same part elsewhere."""
        parts: dict[tuple[Any, ...], list[int]] = {}
        indices = array.sharding.devices_indices_map(array.shape)
        for place, device in enumerate(self._mesh.devices.flat):
            index = tuple((cut.start, cut.stop) for cut in indices[device])
            parts.setdefault(index, []).append(place)
        found = []
        for places in parts.values():
            usual, times = Counter(sums[places].tolist()).most_common(1)[0]
            if times == len(places):
                continue
            # With two copies nobody knows which is the right one.
            odd = [place for place in places if sums[place] != usual or 2 * times <= len(places)]
            of = f"of {len(places)} copies"
            found += [f"{name}: {self._place(place)} differs, {of}" for place in odd]
        return found

    def _place(self, place: int) -> str:
        device = self._mesh.devices.flat[place]
        at = np.unravel_index(place, self._mesh.devices.shape)
        where = ", ".join(f"{axis} {i}" for axis, i in zip(self._mesh.axis_names, at, strict=True))
        return f"{where} (process {device.process_index}, {device})"


def checksum(array: jax.Array) -> jax.Array:
    """A uint32 of the bits of an array, which any one flipped bit changes.

    Each word is multiplied by an odd number of its own, so that also their order counts.
    """
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    word = _WORDS.get(array.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(array, word).reshape(-1).astype(jnp.uint32)
    odd = 2 * jax.lax.iota(jnp.uint32, words.size) + 1
    return jnp.sum(words * odd, dtype=jnp.uint32)
