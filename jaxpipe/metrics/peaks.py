"""What a device can compute at most: the other half of a model FLOPs utilisation (MFU)."""

from typing import NamedTuple

_TERA = 1e12


class Peak(NamedTuple):
    """Dense FLOP/s of one device, by the number format of matrix products.

    Attributes:
      kind: words that are all among those of the device's kind; capitals do not matter.
      bfloat16: in units of 1e12 per second; None where the device has no such products.
      float16: the same.
      float32: the same, as XLA multiplies by default: TF32 on NVIDIA GPUs that have it, one pass
        of bfloat16 on TPUs.
    """

    kind: str
    bfloat16: float | None
    float16: float | None
    float32: float | None


# The first that fits counts, so what is special stands above what is general.
PEAKS = (
    Peak("B200", 2250, 2250, 1125),
    Peak("H200 NVL", 835.5, 835.5, 417.5),
    Peak("H200", 989.4, 989.4, 494.7),
    Peak("GH200", 989.4, 989.4, 494.7),
    Peak("H100 PCIe", 756.5, 756.5, 378),
    Peak("H100 NVL", 835.5, 835.5, 417.5),
    Peak("H100", 989.4, 989.4, 494.7),
    Peak("A100", 312, 312, 156),
    Peak("L40S", 362, 362, 183),
    Peak("L4", 121, 121, 60),
    Peak("V100 PCIE", None, 112, 14),
    Peak("V100", None, 125, 15.7),
    Peak("TPU v6 lite", 918, None, 918),
    Peak("TPU v6e", 918, None, 918),
    Peak("TPU v5 lite", 197, None, 197),
    Peak("TPU v5e", 197, None, 197),
    Peak("TPU v5p", 459, None, 459),
    Peak("TPU v5", 459, None, 459),
    Peak("TPU v4", 275, None, 275),
)
"""Peaks of single devices, as their makers publish them for dense products; NVIDIA's data sheets
print twice as much, with sparsity, for all but the V100.

| device | source |
|---|---|
| B200 | NVIDIA HGX platform data sheet, 8 GPUs: 36 PFLOP/s FP16 and 18 PFLOP/s TF32 with sparsity |
| H200, H200 NVL | NVIDIA H200 data sheet; 1,979 and 1,671 TFLOP/s BF16 with sparsity |
| H100, H100 PCIe, NVL | NVIDIA H100 data sheet; 1,979, 1,513, 1,671 TFLOP/s BF16 with sparsity |
| GH200 | NVIDIA GH200 data sheet; the figures of an H100 |
| A100 | NVIDIA A100 data sheet; 312 TFLOP/s BF16, 156 TFLOP/s TF32 |
| L40S | NVIDIA L40S data sheet; 362.05 TFLOP/s BF16, 183 TFLOP/s TF32 |
| L4 | NVIDIA L4 data sheet; 242 TFLOP/s BF16 and 120 TFLOP/s TF32 with sparsity |
| V100 SXM2, PCIe | NVIDIA V100 data sheet; 125 and 112 TFLOP/s FP16, 15.7 and 14 TFLOP/s FP32 |
| TPU v4, v5e, v5p, v6e | cloud.google.com/tpu/docs, "System architecture" of each version |
"""


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Dense FLOP/s of a device, or None for one that is not in `PEAKS`, as every CPU.

    Args:
      device_kind: `jax.Device.device_kind`.
      dtype: of matrix products, by name.

    >>> peak_flops("NVIDIA H100 80GB HBM3", "bfloat16")
    989400000000000.0
    >>> peak_flops("TPU v5 lite", "bfloat16"), peak_flops("cpu", "float32")
    (197000000000000.0, None)
    """
    words = set(device_kind.upper().replace("-", " ").split())  # Tesla V100-PCIE-16GB
    for peak in PEAKS:
        if words.issuperset(peak.kind.upper().split()):
            found = getattr(peak, dtype, None)
            return None if found is None else found * _TERA
    return None
