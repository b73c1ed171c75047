"""Reference versions of the arithmetic for tests, in plain float64 NumPy, with loops that follow the rules' wording."""

import numpy as np


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Return the overlap of two corner boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def corners(dboxes: np.ndarray) -> np.ndarray:
    """Convert centres to corners."""
    return np.concatenate([dboxes[:, :2] - dboxes[:, 2:] / 2, dboxes[:, :2] + dboxes[:, 2:] / 2], axis=1)


def match(boxes: np.ndarray, labels: np.ndarray, dboxes: np.ndarray, thresh: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the object of each DBox (-1 = none) and its class column, by the rules of matching.

    Overlaps count in steps of 2^-16. Ties go to the nearer centre (squared distance in steps of 2^-20), then to the lower DBox,
    then to the lower object.
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
    """Return the offsets from one DBox to one box."""
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
    """Return both losses of a batch, image by image and DBox by DBox."""
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
    """Return the AP of one class in the steps of VOCevaldet.m."""
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
        if best >= iou_thresh:
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


def pixel_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Return the overlap of two boxes in inclusive pixels."""
    return iou(np.add(a, (0, 0, 1, 1)), np.add(b, (0, 0, 1, 1)))


def error_kinds(
    detections: list[dict], truths: list[dict], num_classes: int, use_07_metric: bool
) -> tuple[list[str], dict[str, float]]:
    """Return the kind of each error, one detection at a time, and the cost of each kind in AP, by fixing the detections and
    objects and evaluating again."""
    rows = sorted((-float(d["scores"][k]), i, k) for i, d in enumerate(detections) for k in range(len(d["scores"])))
    kind_of, about, claimed, targets = {}, {}, set(), set()
    for _, i, k in rows:
        box, label, objects = detections[i]["boxes"][k], detections[i]["labels"][k], truths[i]
        overlaps = [pixel_iou(box, other) for other in objects["boxes"]]
        own = max((m for m in range(len(overlaps)) if objects["labels"][m] == label), key=lambda m: overlaps[m], default=None)
        other = max((m for m in range(len(overlaps)) if objects["labels"][m] != label), key=lambda m: overlaps[m], default=None)
        of_own, of_other = (0 if m is None else overlaps[m] for m in (own, other))
        if of_own >= 0.5 and objects["difficult"][own]:
            continue
        if of_own >= 0.5 and (i, own) not in claimed:
            claimed.add((i, own))
        elif 0.1 <= of_own < 0.5:
            kind_of[i, k], about[i, k] = "localisation", own
        elif of_other >= 0.5:
            kind_of[i, k], about[i, k] = "classification", other
        elif of_own >= 0.5:
            kind_of[i, k] = "duplicate"
        elif of_own < 0.1 and of_other < 0.1:
            kind_of[i, k] = "background"
        else:
            kind_of[i, k] = "both"
    targets = {(i, m) for (i, _), m in about.items()}
    counting = [(i, m) for i, t in enumerate(truths) for m in range(len(t["labels"])) if not t["difficult"][m]]
    missed = set(counting) - claimed - targets

    def mean_ap(found: list[dict], objects: list[dict]) -> float:
        present = sorted({truths[i]["labels"][m] for i, m in counting})
        aps = [voc_ap(found, objects, label, use_07_metric) for label in present]
        return float(np.mean([1 if np.isnan(ap) else ap for ap in aps]))

    as_it_is, costs = mean_ap(detections, truths), {}
    for kind in ("localisation", "classification", "duplicate", "background", "both"):
        mended = [{name: np.array(values) for name, values in d.items()} for d in detections]
        taken, out = set(claimed), set()
        for _, i, k in rows:
            if kind_of.get((i, k)) != kind:
                continue
            m = about.get((i, k))
            if m is None or (i, m) in taken or truths[i]["difficult"][m]:
                out.add((i, k))
                continue
            taken.add((i, m))
            mended[i]["boxes"][k], mended[i]["labels"][k] = truths[i]["boxes"][m], truths[i]["labels"][m]
        kept = [[k for k in range(len(d["scores"])) if (i, k) not in out] for i, d in enumerate(mended)]
        costs[kind] = mean_ap([{n: v[rest] for n, v in d.items()} for d, rest in zip(mended, kept, strict=True)], truths)
    rest = [[m for m in range(len(t["labels"])) if (i, m) not in missed] for i, t in enumerate(truths)]
    costs["missed"] = mean_ap(detections, [{n: v[keep] for n, v in t.items()} for t, keep in zip(truths, rest, strict=True)])
    return [*kind_of.values(), *["missed"] * len(missed)], {kind: value - as_it_is for kind, value in costs.items()}
