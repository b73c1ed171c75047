"""Made-up objects for augmentation."""

import numpy as np

BOXES = np.array([[40, 30, 160, 150], [220, 90, 300, 230], [10, 200, 60, 236]], np.float32)
WIDTH, HEIGHT = 320, 240


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng((9, 0, seed))
