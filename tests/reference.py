"""Plain float64 numpy versions of the arithmetic, loop by loop as the rules are worded: what the tests compare with."""

import numpy as np


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap of two corner boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def corners(dboxes: np.ndarray) -> np.ndarray:
    """Centres to corners."""
    return np.concatenate([dboxes[:, :2] - dboxes[:, 2:] / 2, dboxes[:, :2] + dboxes[:, 2:] / 2], axis=1)


def match(boxes: np.ndarray, labels: np.ndarray, dboxes: np.ndarray, thresh: float) -> tuple[np.ndarray, np.ndarray]:
    """The object of each DBox (-1 = none) and its class column, by the rules of matching.

    Overlaps count in steps of 2^-16; of equal ones the nearer centre comes first (the squared distance in steps of 2^-20), then
    the lower DBox, then the lower object.
    """
    boxes, dboxes = boxes.astype(np.float64), dboxes.astype(np.float64)
    num_objects, num_dboxes = len(boxes), len(dboxes)
    overlap, distance = np.zeros((num_objects, num_dboxes)), np.zeros((num_objects, num_dboxes))
    x1, y1, x2, y2 = corners(dboxes).T
    for g, box in enumerate(boxes):
        width = np.maximum(np.minimum(box[2], x2) - np.maximum(box[0], x1), 0)
        height = np.maximum(np.minimum(box[3], y2) - np.maximum(box[1], y1), 0)
        union = (box[2] - box[0]) * (box[3] - box[1]) + (x2 - x1) * (y2 - y1) - width * height
        overlap[g] = np.rint(width * height / union * 2**16)
        to_x, to_y = (box[0] + box[2]) / 2 - dboxes[:, 0], (box[1] + box[3]) / 2 - dboxes[:, 1]
        distance[g] = np.rint((to_x**2 + to_y**2) * 2**20)
    objects, columns = np.indices(overlap.shape)
    owner = np.full(num_dboxes, -1)
    left = set(range(num_objects))
    for pair in np.lexsort([objects.ravel(), columns.ravel(), distance.ravel(), -overlap.ravel()]):
        g, p = divmod(int(pair), num_dboxes)
        if g in left and owner[p] < 0:
            owner[p] = g
            left.remove(g)
            if not left:
                break
    for p in np.flatnonzero(owner < 0) if num_objects else []:
        g = np.lexsort([distance[:, p], -overlap[:, p]])[0]
        if overlap[g, p] >= round(thresh * 2**16):
            owner[p] = g
    return owner, np.where(owner < 0, 0, labels[owner] + 1 if len(labels) else 0)


def encode(box: np.ndarray, dbox: np.ndarray) -> np.ndarray:
    """Offsets from one DBox to one box."""
    center, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    return np.concatenate([(center - dbox[:2]) / dbox[2:] / 0.1, np.log(size / dbox[2:]) / 0.2])


def loss(
    loc: np.ndarray,
    conf: np.ndarray,
    dboxes: np.ndarray,
    targets: list[np.ndarray],
    thresh: float = 0.5,
    neg_pos: int = 3,
    min_neg: int = 0,
) -> tuple[float, float]:
    """Both losses of a batch, image by image and DBox by DBox."""
    loss_l = loss_c = 0.0
    num_positives = 0
    for i, rows in enumerate(targets):
        owner, column = match(rows[:, :4], rows[:, 4].astype(int), dboxes, thresh)
        entropy = np.log(np.exp(conf[i]).sum(axis=1)) - conf[i][np.arange(len(dboxes)), column]
        positives = np.flatnonzero(owner >= 0)
        num_positives += len(positives)
        for p in positives:
            distance = np.abs(loc[i, p] - encode(rows[owner[p], :4], dboxes[p]))
            loss_l += np.where(distance < 1, 0.5 * distance**2, distance - 0.5).sum()
            loss_c += entropy[p]
        negatives = np.flatnonzero(owner < 0)
        hardest = negatives[np.argsort(-entropy[negatives], kind="stable")][: max(neg_pos * len(positives), min_neg)]
        loss_c += entropy[hardest].sum()
    return loss_l / max(1, num_positives), loss_c / max(1, num_positives)


def voc_ap(detections: list[dict], truths: list[dict], label: int, use_07_metric: bool, iou_thresh: float = 0.5) -> float:
    """AP of one class, step by step as VOCevaldet.m goes."""
    claimed = [np.zeros(len(truth["labels"]), bool) for truth in truths]
    total = sum(int(((t["labels"] == label) & ~t["difficult"]).sum()) for t in truths)
    if not total:
        return float("nan")
    rows = [
        (float(d["scores"][k]), i, np.asarray(d["boxes"][k], float))
        for i, d in enumerate(detections)
        for k in range(len(d["scores"]))
        if d["labels"][k] == label
    ]
    hits = []
    for _, i, box in sorted(rows, key=lambda row: -row[0]):
        best, best_object = -np.inf, -1
        for k in np.flatnonzero(truths[i]["labels"] == label):
            other = truths[i]["boxes"][k]
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if width > 0 and height > 0:
                areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
                overlap = width * height / (sum(areas) - width * height)
                if overlap > best:
                    best, best_object = overlap, k
        if best > iou_thresh:
            if truths[i]["difficult"][best_object]:
                continue
            hits.append(not claimed[i][best_object])
            claimed[i][best_object] = True
        else:
            hits.append(False)
    true = np.cumsum(hits)
    recall, precision = true / total, true / np.arange(1, len(hits) + 1)
    if use_07_metric:
        return float(np.mean([precision[recall >= i / 10].max(initial=0) for i in range(11)]))
    recall, precision = np.concatenate([[0], recall, [1]]), np.concatenate([[0], precision, [0]])
    for k in range(len(precision) - 2, -1, -1):
        precision[k] = max(precision[k], precision[k + 1])
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(((recall[steps + 1] - recall[steps]) * precision[steps + 1]).sum())
