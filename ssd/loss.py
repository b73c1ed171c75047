"""MultiBoxLoss: the training objective of SSD (paper, section 2.2, equations 1 to 3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd.batch import Targets, pad_targets
from ssd.match import Matched, match_batch

LOWEST, HIGHEST = torch.iinfo(torch.int32).min, torch.iinfo(torch.int32).max


def hard_negative_mining(loss_c: Tensor, pos_mask: Tensor, neg_pos: float = 3, min_neg: int = 0) -> Tensor:
    """Choose the negatives with the largest classification loss in each image (SSD paper, section 2.2).

    Args:
        loss_c: classification loss of each DBox `[B, P]`.
        pos_mask: bool `[B, P]`, true at positives.
        neg_pos: negatives per positive.
        min_neg: minimum number of negatives per image, also without positives; 0 in the paper.

    Returns:
        bool `[B, P]`: in each row, the `neg_pos` × (number of positives) hardest negatives, at least `min_neg` and at most
        all. Equal losses count in the order of the DBoxes. Positives are never chosen.
    """
    wanted = (neg_pos * pos_mask.sum(dim=1)).clamp(min=min_neg)
    num_neg = torch.minimum(wanted, (~pos_mask).sum(dim=1))[:, None]  # [B, 1]
    candidates = _ordered_bits(loss_c.detach()).masked_fill(pos_mask, LOWEST)
    threshold = _kth_largest(candidates, num_neg)
    harder, equal = candidates > threshold, candidates == threshold
    return harder | equal & (equal.cumsum(dim=1) <= num_neg - harder.sum(dim=1, keepdim=True))


def _ordered_bits(values: Tensor) -> Tensor:
    """Map float32 to int32 of the same order: the bits, inverted after the sign for negative values."""
    bits = (values.float() + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    return bits ^ (bits >> 31 & 0x7FFFFFFF)


def _kth_largest(values: Tensor, k: Tensor) -> Tensor:
    """Return the k-th largest int32 of each row, `[B, P], [B, 1] → [B, 1]`; the largest possible int32 if k is 0.

    The result is built bit by bit from the highest. Counting a row 32 times takes a fifth of the time of sorting it.
    """
    negative = (values >= 0).sum(dim=1, keepdim=True) < k  # [B, 1]
    # Values of the half with the result, shifted to start at 0; values below become -1, values above the maximum.
    half = torch.where(negative, torch.where(values < 0, values ^ LOWEST, HIGHEST), values.clamp(min=-1))
    found = torch.zeros_like(k, dtype=torch.int32)
    for bit in reversed(range(31)):
        raised = found + (1 << bit)
        num_lower = -((half - raised) >> 31).sum(dim=1, keepdim=True, dtype=torch.int32)  # -1 for each lower value
        found = torch.where(values.shape[1] - num_lower >= k, raised, found)
    return torch.where(negative, found ^ LOWEST, found)


class MultiBoxLoss(nn.Module):
    """Localisation and classification loss of SSD.

    Args:
        jaccard_thresh: minimum overlap for matching a DBox to an object.
        neg_pos: mined negatives per positive.
        device: device for matching; by default that of the predictions.
        min_neg: minimum number of mined negatives per image, so that images without objects count too; 0 in the paper.
        class_weights: factor on the cross entropy of each class `[C]`, column 0 = background; 1 in the paper. Mining and the
            divisor do not change.
    """

    def __init__(
        self,
        jaccard_thresh: float = 0.5,
        neg_pos: float = 3,
        device: torch.device | str | None = None,
        min_neg: int = 0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.class_weights = class_weights
        self.jaccard_thresh = jaccard_thresh
        self.neg_pos = neg_pos
        self.min_neg = min_neg
        self.device = torch.device(device) if device is not None else None

    def forward(self, predictions: tuple[Tensor, Tensor, Tensor], targets: Sequence[Tensor] | Targets) -> tuple[Tensor, Tensor]:
        """Return both losses of a batch.

        Args:
            predictions: loc `[B, P, 4]` offsets, conf `[B, P, C]` logits (column 0 = background), and dbox_list
                `[P, 4]` centres.
            targets: a list of B tensors `[G, 5]`, rows (x1, y1, x2, y2, label) with corners relative to the image and
                labels from 0, or the loader's padded `Targets`.

        Returns:
            loss_l: smooth L1 summed over positives. loss_c: cross entropy summed over positives and mined negatives. Both are
            float32 scalars, divided by the number of positives in the batch, at least 1. Without objects, loss_l is 0, and
            loss_c too if `min_neg` is 0; the gradients are then 0.

        Raises:
            ValueError: the number of targets is not the number of images, or a target has another shape.
        """
        loc, conf, dbox_list = predictions
        padded = targets if isinstance(targets, Targets) else pad_targets(targets)
        if len(padded.labels) != len(loc):
            raise ValueError(f"targets of {len(padded.labels)} images for predictions of {len(loc)}")
        matched = self.match(padded.to(self.device or loc.device), dbox_list)
        return self.loss(loc, conf, matched, self.num_positives(matched))

    def match(self, targets: Targets, dbox_list: Tensor) -> Matched:
        """Return the target of each DBox."""
        return match_batch(targets, dbox_list, self.jaccard_thresh)

    def num_positives(self, matched: Matched) -> Tensor:
        """Return the number of positives `[]`, float32, by which the losses are divided."""
        return (matched.conf > 0).sum().float()

    def loss(self, loc: Tensor, conf: Tensor, matched: Matched, num_positives: Tensor) -> tuple[Tensor, Tensor]:
        """Return both losses for matched targets, divided by `num_positives` (at least 1).

        `num_positives` counts the whole batch, which may be spread over processes or accumulation steps.
        """
        divisor = num_positives.clamp(min=1)
        if loc.device.type == "cpu" and not torch.compiler.is_compiling():
            # Selecting the few DBoxes that count, so that only they need gradients, halves the time.
            positive = matched.conf > 0  # [B, P]
            loc, loc_t, conf, conf_t = (values.flatten(0, 1) for values in (loc, matched.loc, conf, matched.conf))
            with torch.no_grad():
                entropy = F.cross_entropy(conf.float(), conf_t, reduction="none")
            negative = hard_negative_mining(entropy.view_as(positive), positive, self.neg_pos, self.min_neg)
            rows, counted = (mask.flatten().nonzero().flatten() for mask in (positive, positive | negative))
            loss_l = F.smooth_l1_loss(loc[rows].float(), loc_t[rows], reduction="sum")
            loss_c = F.cross_entropy(conf[counted].float(), conf_t[counted], self.class_weights, reduction="sum")
            return loss_l / divisor, loss_c / divisor
        # On a GPU, selecting would make the host wait for their number, so the terms of all DBoxes are computed.
        distance, entropy = self._terms(loc, conf, matched)
        return distance.sum() / divisor, entropy.sum() / divisor

    @torch.no_grad()
    def sums(self, predictions: tuple[Tensor, Tensor, Tensor], targets: Targets) -> Tensor:
        """Return the terms of each image, for the loss of a whole data set.

        Args:
            predictions: as in `forward`.
            targets: targets of the same B images.

        Returns:
            `[B, 3]` float64 on the CPU: loss_l and loss_c, not divided, and the number of positives. A row does not depend on
            the other images of the batch.
        """
        loc, conf, dbox_list = predictions
        matched = self.match(targets.to(self.device or loc.device), dbox_list)
        terms = torch.stack([*self._terms(loc, conf, matched), (matched.conf > 0).float()])  # [3, B, P]
        return terms.cpu().double().sum(dim=-1).T  # not every device has float64

    def _terms(self, loc: Tensor, conf: Tensor, matched: Matched) -> tuple[Tensor, Tensor]:
        """Return the terms of each DBox in loss_l and loss_c before division, `[B, P]` each; 0 where it does not count."""
        # Values that do not count are replaced first: 0 times infinity is NaN, in the gradient too.
        positive = matched.conf > 0
        loc = torch.where(positive[..., None], loc.float(), matched.loc)
        distance = F.smooth_l1_loss(loc, matched.loc, reduction="none").sum(dim=-1)
        with torch.no_grad():
            negative = hard_negative_mining(_entropy(conf, matched.conf), positive, self.neg_pos, self.min_neg)
        counted = positive | negative
        conf = torch.where(counted[..., None], conf.float(), 0)
        return distance, torch.where(counted, _entropy(conf, matched.conf, self.class_weights), 0)


def _entropy(conf: Tensor, conf_t: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the cross entropy of each DBox, `[B, P]` float32, for logits `[B, P, C]`, classes `[B, P]` and weights `[C]`."""
    return F.cross_entropy(conf.float().flatten(0, 1), conf_t.flatten(), weights, reduction="none").view_as(conf_t)
