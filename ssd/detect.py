"""Raw predictions to detections: decoding, thresholds and non-maximum suppression (SSD paper, section 3)."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from ssd.boxes import decode

# Caffe SSD's nms_param.top_k: boxes of one class, in one image, that may enter NMS.
CANDIDATES = 400


@torch.no_grad()
def detect(
    loc: Tensor,
    conf: Tensor,
    dbox_list: Tensor,
    score_thresh: float = 0.01,
    nms_thresh: float = 0.45,
    top_k: int = 200,
) -> list[dict[str, Tensor]]:
    """Detections of a batch.

    Args:
        loc: offsets `[B, P, 4]`.
        conf: logits `[B, P, C]`, column 0 = background.
        dbox_list: centres `[P, 4]`.
        score_thresh: least score (softmax probability) of a detection.
        nms_thresh: of two boxes of one class that overlap by more, the lower one goes.
        top_k: most detections an image, over all classes. At most 400 a class enter NMS.

    Returns:
        A dict an image: `boxes` `[n, 4]` corners relative to the image and clipped to it, `labels` `[n]` from 0 over the
        class names, `scores` `[n]`, falling.
    """
    num_images, num_dboxes, num_columns = conf.shape
    num_classes = num_columns - 1
    scores = conf.float().softmax(dim=2)[..., 1:].transpose(1, 2)  # [B, C - 1, P]
    scores, dbox = scores.flatten(0, 1).topk(min(CANDIDATES, num_dboxes), dim=1)  # [B · (C - 1), K]
    group, place = torch.nonzero(scores > score_thresh, as_tuple=True)  # [n] each; group = image · (C - 1) + label
    scores, dbox = scores[group, place], dbox[group, place]
    image = group // num_classes
    boxes = decode(loc[image, dbox].float(), dbox_list[dbox].float()).clamp(0, 1)
    kept = batched_nms(boxes, scores, group, nms_thresh)  # falling scores
    kept = kept[image[kept].argsort(stable=True)]
    counts = torch.bincount(image[kept], minlength=num_images).tolist()
    return [
        {"boxes": boxes[rows], "labels": (group[rows] % num_classes), "scores": scores[rows]}
        for rows in (part[:top_k] for part in kept.split(counts))
    ]
