"""Run an exported network without this project: python scripts/run_onnx.py FILE.onnx PHOTO..."""

import json
import os
import signal
import sys

import numpy as np
import onnxruntime

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))  # read when OpenCV is loaded
for name in ("SIGINT", "SIGPIPE"):  # exit without a traceback on Ctrl-C or a closed pipe
    if hasattr(signal, name):  # Windows has no SIGPIPE
        signal.signal(getattr(signal, name), signal.SIG_DFL)
try:
    import cv2
except ImportError as error:
    sys.exit(f"error: OpenCV cannot be loaded ({error}); without a display, run pip install opencv-python-headless")
if len(sys.argv) < 3:
    sys.exit("usage: python scripts/run_onnx.py FILE.onnx PHOTO...")
sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore (names may have characters that the terminal lacks)
try:
    session = onnxruntime.InferenceSession(sys.argv[1])
    metadata = session.get_modelmeta().custom_metadata_map
    classes = json.loads(metadata["classes"])
except Exception as error:  # ONNX Runtime raises its own types of errors
    sys.exit(f"error: {sys.argv[1]}: is not an exported network: {' '.join(str(error).split())}")


def averaged(side):
    """Return the length of a side after averaging: the network's input, or up to twice as long."""
    factor = 1
    while side > 2 * factor * int(metadata.get("input_size", side)):
        factor *= 2
    return (side + factor // 2) // factor


for path in sys.argv[2:]:
    try:
        encoded = np.fromfile(path, np.uint8)
    except OSError as error:
        sys.exit(f"error: {path}: cannot be read: {error.strerror}")
    try:
        photo = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB) if encoded.size else None
    except cv2.error as error:
        sys.exit(f"error: {path}: cannot be decoded, or has more than {2**27:,} pixels ({error.err})")
    if photo is None:
        sys.exit(f"error: {path}: is not a decodable image")
    height, width = photo.shape[:2]
    small = cv2.resize(photo, (averaged(width), averaged(height)), interpolation=cv2.INTER_AREA)
    scale = np.array([width / small.shape[1], height / small.shape[0]] * 2)
    outputs = session.run(["boxes", "labels", "scores"], {"images": small[None]})  # [1, K, 4], [1, K], [1, K]
    for box, label, score in zip(*(np.asarray(output)[0] for output in outputs), strict=True):
        if label >= 0:
            print(path, classes[label], f"{score:.2f}", *(round(float(value), 1) for value in box * scale))
