"""Small images with their classes: scikit-learn's digits, which need no download, and MNIST."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pynode.data.series import split_rows
from pynode.errors import InputError


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and their classes.

    Attributes:
        x: (N, D) rows of pixels, or (N, channels, height, width).
        y: (N,) int64, classes from 0.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Tensor | slice) -> LabelledImages:
        return LabelledImages(self.x[rows], self.y[rows])

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.y.max()) + 1


def digits(seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """scikit-learn's 1797 handwritten digits of 8 × 8 pixels: 70 % to train on, 30 % to test on.

    Args:
        seed: of the split.

    Returns:
        Training and test images, x (N, 64) from -1 to 1.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(
            "the digits are scikit-learn's, which is not installed: pip install "
            "'pynode-ode[experiments]'"
        ) from None
    pixels, classes = load_digits(return_X_y=True)
    x = torch.as_tensor(pixels, dtype=torch.float32) / 8 - 1
    everything = LabelledImages(x, torch.as_tensor(classes, dtype=torch.int64))
    train, test = split_rows(len(everything), (0.7, 0.3), seed=seed)
    return everything[train], everything[test]


def mnist(folder: Path) -> tuple[LabelledImages, LabelledImages]:
    """MNIST: 60,000 images to train on and 10,000 to test on, x (N, 1, 28, 28) from 0 to 1.

    Args:
        folder: where torchvision keeps the files; it downloads them if they are not there.

    Raises:
        InputError: torchvision is not installed, or the files can be neither found nor downloaded.
    """
    try:
        from torchvision.datasets import MNIST
    except ImportError:
        raise InputError(
            "--data mnist needs torchvision, in the version that belongs to your torch: pip "
            "install torchvision; or take --data digits, which needs no download"
        ) from None
    parts = []
    for is_train in (True, False):
        try:
            found = MNIST(str(folder), train=is_train, download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"MNIST is not in {folder} and could not be downloaded ({error}): put its files "
                "there, or take --data digits"
            ) from None
        parts.append(LabelledImages(found.data.unsqueeze(1).float() / 255, found.targets.long()))
    return parts[0], parts[1]
