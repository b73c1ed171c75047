"""All it takes to use an exported network, with nothing of this project: python scripts/run_onnx.py FILE.onnx PHOTO..."""

import json
import sys

import cv2
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
for path in sys.argv[2:]:
    photo = cv2.imread(path)
    if photo is None:
        sys.exit(f"error: {path}: is no image that can be decoded")
    rgb = cv2.cvtColor(photo, cv2.COLOR_BGR2RGB)
    outputs = session.run(["boxes", "labels", "scores"], {"images": rgb[None]})  # [1, K, 4], [1, K], [1, K]
    for box, label, score in zip(*(np.asarray(output)[0] for output in outputs), strict=True):
        if label >= 0:
            print(path, classes[label], f"{score:.2f}", *(round(float(value), 1) for value in box))
