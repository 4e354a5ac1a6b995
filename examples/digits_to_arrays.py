"""Writes scikit-learn's digits, 1797 images of 8 x 8 pixels, as arrays that jaxpipe trains on.

python examples/digits_to_arrays.py && jaxpipe train configs/vit-digits.yaml
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def main(path: Path = Path("data/digits.npz")) -> Path:
    """Writes `inputs`, float32 [n, 8, 8] from 0 to 1, and `targets`, the digits."""
    pixels, digits = load_digits(return_X_y=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = (pixels / 16).reshape(-1, 8, 8).astype(np.float32)
    np.savez(path, inputs=images, targets=digits)
    print(f"{path}: {len(images)} images")
    return path


if __name__ == "__main__":
    main()
