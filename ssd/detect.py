"""Raw predictions to detections: decoding, thresholds and non-maximum suppression (SSD paper, section 3)."""

from typing import cast

import torch
from torch import Tensor
from torchvision.ops import nms  # pyright: ignore[reportMissingTypeStubs]

from ssd.boxes import NO_FLOAT64, decode

# Boxes per class and image that enter NMS: nms_param.top_k of Caffe SSD.
PRE_NMS_TOP_K = 400


@torch.no_grad()
def detect(
    loc: Tensor, conf: Tensor, dbox_list: Tensor, score_thresh: float = 0.01, nms_thresh: float = 0.45, top_k: int = 200
) -> list[dict[str, Tensor]]:
    """Return the detections in a batch.

    Args:
        loc: offsets `[B, P, 4]`.
        conf: logits `[B, P, C]`, column 0 = background.
        dbox_list: centres `[P, 4]`.
        score_thresh: detections have a score (softmax probability) above this.
        nms_thresh: if two boxes of one class overlap by more, the one with the lower score is removed.
        top_k: maximum number of detections per image, over all classes. At most 400 per class enter NMS.

    Returns:
        One dict per image: `boxes` `[n, 4]` corners relative to the image and clipped to it, `labels` `[n]` from 0 over the
        class names, `scores` `[n]`, falling. DBoxes with a NaN logit or an offset that is not finite give no detection.
    """
    if loc.device.type in NO_FLOAT64:
        found = detect(loc.cpu(), conf.cpu(), dbox_list.cpu(), score_thresh, nms_thresh, top_k)
        return [{name: values.to(loc.device) for name, values in each.items()} for each in found]
    scores = conf.float().softmax(dim=2)[..., 1:]  # [B, P, C - 1]
    # One NaN logit makes the whole softmax row NaN, which would rank above every score.
    scores.masked_fill_((scores[..., 0].isnan() | ~loc.isfinite().all(dim=2))[..., None], 0)
    # NMS removes a box only because of higher scores. If the best few hundred boxes leave `top_k` detections, the others do not
    # matter. Early in training nearly all P × (C - 1) pass the threshold.
    found, complete = _detect(loc, scores, dbox_list, score_thresh, nms_thresh, top_k, num_best=5 * top_k)
    rest = [i for i, is_complete in enumerate(complete) if not is_complete]
    if rest:
        again, _ = _detect(loc[rest], scores[rest], dbox_list, score_thresh, nms_thresh, top_k, num_best=len(dbox_list))
        for i, detections in zip(rest, again, strict=True):
            found[i] = detections
    return found


def _detect(
    loc: Tensor, scores: Tensor, dbox_list: Tensor, score_thresh: float, nms_thresh: float, top_k: int, num_best: int
) -> tuple[list[dict[str, Tensor]], list[bool]]:
    """Return the detections among boxes that score above the `num_best`-th DBox of their image.

    Returns:
        Detections as in `detect`, and for each image whether they are complete: other boxes cannot change them.
    """
    num_images, num_dboxes, num_classes = scores.shape
    best = scores.amax(dim=2)  # [B, P]
    num_passing = (best > score_thresh).sum(dim=1)  # [B]
    most = min(max(int(num_passing.max()), 1), num_best, num_dboxes) if num_images else 1
    best, dbox = best.topk(most, dim=1)  # [B, D] each
    is_cut = num_passing > most  # [B]
    least = torch.where(is_cut, best[:, -1], score_thresh)  # [B]
    scores = scores.gather(1, dbox[..., None].expand(-1, -1, num_classes)).transpose(1, 2)  # [B, C - 1, D]
    scores, place = scores.topk(min(PRE_NMS_TOP_K, most), dim=2)  # [B, C - 1, K]
    image, label, rank = torch.nonzero(scores > least[:, None, None], as_tuple=True)  # [n] each
    scores, dbox = scores[image, label, rank], dbox[image, place[image, label, rank]]
    boxes = decode(loc[image, dbox].float(), dbox_list[dbox].float()).clamp(0, 1)
    # Boxes are shifted by class, so that one NMS call per image covers all classes. One call for the batch, or one per class as
    # in torchvision's batched_nms, takes three times as long. In float32 the shift would cost small boxes their last digits.
    apart = boxes.double() + label[:, None]
    counts = cast("list[int]", torch.bincount(image, minlength=num_images).tolist())  # pyright: ignore[reportUnknownMemberType]
    cuts = cast("list[bool]", is_cut.tolist())  # pyright: ignore[reportUnknownMemberType]
    parts = zip(*(torch.split(values, counts) for values in (boxes, label, scores, apart)), strict=True)
    found: list[dict[str, Tensor]] = []
    for boxes_i, labels_i, scores_i, apart_i in parts:
        kept = nms(apart_i, scores_i.double(), nms_thresh)[:top_k]  # falling scores
        found.append({"boxes": boxes_i[kept], "labels": labels_i[kept], "scores": scores_i[kept]})
    complete = [not cut or len(of_image["scores"]) == top_k for cut, of_image in zip(cuts, found, strict=True)]
    return found, complete
