"""Raw predictions to detections: decoding, thresholds and non-maximum suppression (SSD paper, section 3)."""

import torch
from torch import Tensor
from torchvision.ops import nms

from ssd.boxes import decode, is_apple

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
        score_thresh: the score (softmax probability) of a detection is larger than this.
        nms_thresh: of two boxes of one class that overlap by more, the lower one goes.
        top_k: most detections an image, over all classes. At most 400 a class enter NMS.

    Returns:
        A dict an image: `boxes` `[n, 4]` corners relative to the image and clipped to it, `labels` `[n]` from 0 over the
        class names, `scores` `[n]`, falling. A DBox with a NaN among its logits, or an offset that is not finite, gives none.
    """
    if is_apple(loc.device):  # it has no float64
        found = detect(loc.cpu(), conf.cpu(), dbox_list.cpu(), score_thresh, nms_thresh, top_k)
        return [{name: values.to(loc.device) for name, values in each.items()} for each in found]
    scores = conf.float().softmax(dim=2)[..., 1:]  # [B, P, C - 1]
    # One NaN makes a whole row of the softmax NaN, which would rank before every score.
    scores.masked_fill_((scores[..., 0].isnan() | ~loc.isfinite().all(dim=2))[..., None], 0)
    # NMS decides on a box by higher ones alone. Where a few hundred of the best boxes already leave `top_k`, all the
    # others need no look: early in training nearly all 8,732 × (C - 1) of them pass the threshold.
    found, complete = _detect(loc, scores, dbox_list, score_thresh, nms_thresh, top_k, num_best=5 * top_k)
    rest = [i for i, is_complete in enumerate(complete) if not is_complete]
    if rest:
        again, _ = _detect(loc[rest], scores[rest], dbox_list, score_thresh, nms_thresh, top_k, num_best=len(dbox_list))
        for i, detections in zip(rest, again, strict=True):
            found[i] = detections
    return found


def _detect(
    loc: Tensor,
    scores: Tensor,
    dbox_list: Tensor,
    score_thresh: float,
    nms_thresh: float,
    top_k: int,
    num_best: int,
) -> tuple[list[dict[str, Tensor]], list[bool]]:
    """Detections among the boxes whose score is higher than that of the `num_best`-th DBox of their image.

    Returns:
        Detections as of `detect`, and for each image whether a look at the lower boxes could change nothing.
    """
    num_images, num_dboxes, num_classes = scores.shape
    best = scores.amax(dim=2)  # [B, P]
    num_passing = (best > score_thresh).sum(dim=1)  # [B]
    most = min(max(int(num_passing.max()), 1), num_best, num_dboxes) if num_images else 1
    best, dbox = best.topk(most, dim=1)  # [B, D] each
    is_cut = num_passing > most  # [B]
    least = torch.where(is_cut, best[:, -1], score_thresh)  # [B]
    scores = scores.gather(1, dbox[..., None].expand(-1, -1, num_classes)).transpose(1, 2)  # [B, C - 1, D]
    scores, place = scores.topk(min(CANDIDATES, most), dim=2)  # [B, C - 1, K]
    image, label, rank = torch.nonzero(scores > least[:, None, None], as_tuple=True)  # [n] each
    scores, dbox = scores[image, label, rank], dbox[image, place[image, label, rank]]
    boxes = decode(loc[image, dbox].float(), dbox_list[dbox].float()).clamp(0, 1)
    # Classes are laid side by side, so that one call settles them all. The call compares each box with every later one:
    # for a whole batch, or class by class as torchvision's batched_nms does here, it takes three times as long. In float32 a
    # small box would lose its last digits to the number of its class.
    apart = boxes.double() + label[:, None]
    counts = torch.bincount(image, minlength=num_images).tolist()
    parts = zip(*(values.split(counts) for values in (boxes, label, scores, apart)), strict=True)
    found = []
    for boxes_i, labels_i, scores_i, apart_i in parts:
        kept = nms(apart_i, scores_i.double(), nms_thresh)[:top_k]  # falling scores
        found.append({"boxes": boxes_i[kept], "labels": labels_i[kept], "scores": scores_i[kept]})
    complete = [not cut or len(of_image["scores"]) == top_k for cut, of_image in zip(is_cut.tolist(), found, strict=True)]
    return found, complete
