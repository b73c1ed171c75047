"""MultiBoxLoss: the training objective of SSD (paper, section 2.2, equations 1 to 3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd.batch import Targets, pad_targets
from ssd.match import Matched, match_batch

LOWEST, HIGHEST = torch.iinfo(torch.int32).min, torch.iinfo(torch.int32).max


def hard_negative_mining(loss_c: Tensor, pos_mask: Tensor, neg_pos: float = 3, min_neg: int = 0) -> Tensor:
    """Chooses, in each image, the negatives of largest classification loss (SSD paper, section 2.2).

    Args:
        loss_c: classification loss of each DBox `[B, P]`.
        pos_mask: bool `[B, P]`, true at positives.
        neg_pos: negatives for each positive.
        min_neg: least negatives of an image, also of one without positives; 0 in the paper.

    Returns:
        bool `[B, P]`: in each row the `neg_pos` × (number of positives) hardest negatives, at least `min_neg` and at most
        all of them; equal losses are taken in the order of the DBoxes. Never a positive.
    """
    wanted = (neg_pos * pos_mask.sum(dim=1)).clamp(min=min_neg)
    num_neg = torch.minimum(wanted, (~pos_mask).sum(dim=1))[:, None]  # [B, 1]
    candidates = _ordered_bits(loss_c.detach()).masked_fill(pos_mask, LOWEST)
    threshold = _kth_largest(candidates, num_neg)
    harder, equal = candidates > threshold, candidates == threshold
    return harder | equal & (equal.cumsum(dim=1) <= num_neg - harder.sum(dim=1, keepdim=True))


def _ordered_bits(values: Tensor) -> Tensor:
    """float32 → int32 of the same order: the bits as they are, those behind a minus sign inverted."""
    bits = (values.float() + 0.0).view(torch.int32)  # + 0.0 makes one zero of the two
    return bits ^ (bits >> 31 & 0x7FFFFFFF)


def _kth_largest(values: Tensor, k: Tensor) -> Tensor:
    """The k-th largest int32 of each row, `[B, P], [B, 1] → [B, 1]`; the largest int32 of all where k is 0.

    Found bit by bit, from the highest: counting a row 32 times is a fifth of the work of sorting it.
    """
    negative = (values >= 0).sum(dim=1, keepdim=True) < k  # [B, 1]
    # The half that holds the answer, from 0 on; what lies below it is -1, what lies above it the largest.
    half = torch.where(negative, torch.where(values < 0, values ^ LOWEST, HIGHEST), values.clamp(min=-1))
    found = torch.zeros_like(k, dtype=torch.int32)
    for bit in reversed(range(31)):
        raised = found + (1 << bit)
        num_lower = -((half - raised) >> 31).sum(dim=1, keepdim=True, dtype=torch.int32)  # -1 for each that is lower
        found = torch.where(values.shape[1] - num_lower >= k, raised, found)
    return torch.where(negative, found ^ LOWEST, found)


class MultiBoxLoss(nn.Module):
    """Localisation and classification loss of SSD.

    Args:
        jaccard_thresh: least overlap at which a DBox is matched to an object.
        neg_pos: mined negatives for each positive.
        device: where the targets are taken before matching; by default to the predictions' device.
        min_neg: least mined negatives of an image, so that one without objects teaches what is none; 0 in the paper.
    """

    def __init__(
        self,
        jaccard_thresh: float = 0.5,
        neg_pos: float = 3,
        device: torch.device | str | None = None,
        min_neg: int = 0,
    ) -> None:
        super().__init__()
        self.jaccard_thresh = jaccard_thresh
        self.neg_pos = neg_pos
        self.min_neg = min_neg
        self.device = torch.device(device) if device is not None else None

    def forward(self, predictions: tuple[Tensor, Tensor, Tensor], targets: Sequence[Tensor] | Targets) -> tuple[Tensor, Tensor]:
        """Both losses of a batch.

        Args:
            predictions: loc `[B, P, 4]` offsets, conf `[B, P, C]` logits (column 0 = background), and dbox_list
                `[P, 4]` centres.
            targets: a list of B tensors `[G, 5]`, rows (x1, y1, x2, y2, label) with corners relative to the image and
                labels from 0, or the loader's padded `Targets`.

        Returns:
            loss_l, smooth L1 summed over positives, and loss_c, cross entropy summed over positives and mined
            negatives: float32 scalars, both divided by the number of positives in the batch, at least 1. Without any
            object loss_l is 0, and so is loss_c where `min_neg` is 0, with a gradient of 0.

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
        """What each DBox is to predict."""
        return match_batch(targets, dbox_list, self.jaccard_thresh)

    def num_positives(self, matched: Matched) -> Tensor:
        """The number of positives `[]`, float32: what the losses are divided by, unless it is 0."""
        return (matched.conf > 0).sum().float()

    def loss(self, loc: Tensor, conf: Tensor, matched: Matched, num_positives: Tensor) -> tuple[Tensor, Tensor]:
        """Both losses against matched targets, divided by `num_positives` (at least 1).

        The caller names the number of positives because it has to be that of the whole batch, also when the batch is
        spread over processes or accumulation steps.
        """
        divisor = num_positives.clamp(min=1)
        if loc.device.type == "cpu" and not torch.compiler.is_compiling():
            # The few DBoxes that count are picked out, so that gradients are worked out for them alone: half of the time.
            positive = matched.conf > 0  # [B, P]
            loc, loc_t, conf, conf_t = (values.flatten(0, 1) for values in (loc, matched.loc, conf, matched.conf))
            with torch.no_grad():
                entropy = F.cross_entropy(conf.float(), conf_t, reduction="none")
            negative = hard_negative_mining(entropy.view_as(positive), positive, self.neg_pos, self.min_neg)
            rows, counted = (mask.flatten().nonzero().flatten() for mask in (positive, positive | negative))
            loss_l = F.smooth_l1_loss(loc[rows].float(), loc_t[rows], reduction="sum")
            loss_c = F.cross_entropy(conf[counted].float(), conf_t[counted], reduction="sum")
            return loss_l / divisor, loss_c / divisor
        # On a GPU to ask how many they are is to wait for it; there all are worked out.
        distance, entropy = self._terms(loc, conf, matched)
        return distance.sum() / divisor, entropy.sum() / divisor

    @torch.no_grad()
    def sums(self, predictions: tuple[Tensor, Tensor, Tensor], targets: Targets) -> Tensor:
        """What each image adds to the losses of a whole data set, and to the number of positives that divides them.

        Args:
            predictions: as `forward` takes them.
            targets: of the same B images.

        Returns:
            `[B, 3]` float64 on the CPU: loss_l and loss_c, not divided, and the number of positives. An image's row does
            not depend on the other images of its batch.
        """
        loc, conf, dbox_list = predictions
        matched = self.match(targets.to(self.device or loc.device), dbox_list)
        terms = torch.stack([*self._terms(loc, conf, matched), (matched.conf > 0).float()])  # [3, B, P]
        return terms.cpu().double().sum(dim=-1).T  # not every device has float64

    def _terms(self, loc: Tensor, conf: Tensor, matched: Matched) -> tuple[Tensor, Tensor]:
        """What each DBox adds to loss_l and to loss_c before the division, `[B, P]` each; 0 where it does not count."""
        # What does not count is replaced before the arithmetic: 0 times what is not finite is NaN, in the gradient too.
        positive = matched.conf > 0
        loc = torch.where(positive[..., None], loc.float(), matched.loc)
        distance = F.smooth_l1_loss(loc, matched.loc, reduction="none").sum(dim=-1)
        with torch.no_grad():
            negative = hard_negative_mining(_entropy(conf, matched.conf), positive, self.neg_pos, self.min_neg)
        counted = positive | negative
        conf = torch.where(counted[..., None], conf.float(), 0)
        return distance, torch.where(counted, _entropy(conf, matched.conf), 0)


def _entropy(conf: Tensor, conf_t: Tensor) -> Tensor:
    """Cross entropy of each DBox: logits `[B, P, C]`, classes `[B, P]` → `[B, P]` float32."""
    return F.cross_entropy(conf.float().flatten(0, 1), conf_t.flatten(), reduction="none").view_as(conf_t)
