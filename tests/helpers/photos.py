"""A made-up photo, as a file's content."""

import cv2
import numpy as np

NOISE = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
JPEG = cv2.imencode(".jpg", NOISE)[1].tobytes()
MIDDLE = len(JPEG) // 2
DAMAGED = JPEG[:MIDDLE] + b"\xff\xc4" * 150 + JPEG[MIDDLE + 300 :]
