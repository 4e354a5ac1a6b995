"""Accelerators in numbers: what a plan assumes of devices that are not there."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from jaxpipe.errors import ConfigError, nearest
from jaxpipe.metrics import peak_flops

_G = 1e9


@dataclass(frozen=True)
class Chip:
    """One device, by its data sheet, in decimal units.

    Attributes:
      name: as one asks for it.
      kind: as JAX calls it.
      platform: "gpu" or "tpu".
      memory: bytes.
      bandwidth: of that memory, bytes per second.
      link: bytes per second, in one direction, to a device of the same machine.
      network: the same to one of another machine, for each device.
      per_machine: devices that share a machine; on TPU a slice, whose devices all have links.
    """

    name: str
    kind: str
    platform: str
    memory: float
    bandwidth: float
    link: float
    network: float
    per_machine: int

    def peak(self, dtype: str) -> float:
        """FLOP/s of matrix products of arrays of a dtype; see `jaxpipe.metrics.PEAKS`.

        Raises:
          ConfigError: it has none of that dtype.
        """
        found = peak_flops(self.kind, dtype)
        if found is None:
            raise ConfigError(
                f"pipeline.compute_dtype: a {self.name} has no matrix products of {dtype}; use"
                " bfloat16."
            )
        return found


def _gpu(name: str, kind: str, memory: float, bandwidth: float, link: float, net: float) -> Chip:
    return Chip(name, kind, "gpu", memory * _G, bandwidth * _G, link * _G, net * _G, 8)


def _tpu(name: str, kind: str, memory: float, bandwidth: float, link: float) -> Chip:
    return Chip(name, kind, "tpu", memory * 2**30, bandwidth * _G, link * _G, 6.25 * _G, 256)


CHIPS = {
    chip.name: chip
    for chip in (
        _gpu("A100-40GB", "NVIDIA A100-SXM4-40GB", 40, 1555, 300, 25),
        _gpu("A100", "NVIDIA A100-SXM4-80GB", 80, 2039, 300, 25),
        _gpu("H100", "NVIDIA H100 80GB HBM3", 80, 3350, 450, 50),
        _gpu("H200", "NVIDIA H200", 141, 4800, 450, 50),
        _gpu("B200", "NVIDIA B200", 180, 8000, 900, 50),
        _tpu("v4", "TPU v4", 32, 1228, 150),
        _tpu("v5e", "TPU v5 lite", 16, 819, 100),
        _tpu("v5p", "TPU v5p", 95, 2765, 300),
        _tpu("v6e", "TPU v6 lite", 32, 1640, 224),
    )
}
"""By name. NVIDIA: data sheets of A100, H100 and H200 (SXM) and of the DGX A100, H100 and B200,
with one 200 or 400 Gb/s network port for each GPU; NVLink's figure is of both directions, so half
of it. TPU: Google Cloud's pages "TPU v4", "v5e", "v5p" and "v6e"; half of the interconnect's
figure, and 50 Gb/s of data centre network for each chip."""


class Devices(NamedTuple):
    """So many chips of a kind."""

    number: int
    chip: Chip


def parse_devices(text: str) -> Devices:
    """Reads `64xH100`.

    >>> parse_devices("64xH100").number, parse_devices("8xv5e").chip.kind
    (64, 'TPU v5 lite')

    Raises:
      ConfigError: it is not of that form, or no such chip is known.
    """
    found = re.fullmatch(r"(\d+)\s*x\s*(\S+)", text.strip(), re.IGNORECASE)
    if found is None or int(found[1]) < 1:
        raise ConfigError(f"devices: got {text!r}; expected a number and a chip, such as 64xH100.")
    by_name = {name.lower(): chip for name, chip in CHIPS.items()}
    if found[2].lower() not in by_name:
        raise ConfigError(f"devices: unknown chip {found[2]!r}; {nearest(found[2], CHIPS)}")
    return Devices(int(found[1]), by_name[found[2].lower()])
