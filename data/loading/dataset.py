"""The PyTorch dataset of training and evaluation: photos, and tiles of large ones, as augmented samples."""

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from data.dataset.annotations import Annotations
from data.dataset.crops import LabelledCrops
from data.dataset.images import read_image
from data.loading.collate import Sample, collate
from data.loading.image_cache import ImageCache
from data.loading.sampler import SampleKey
from data.transforms.augment import Augmentation, Crop, draw_augmentation, no_augmentation, scale_augmentation
from ssd.batch import Batch
from ssd.config.schema import AugmentConfig
from ssd.preprocessing import reduction
from ssd.system.images import DecodedPhoto


class DetectionDataset(Dataset[Batch]):
    """Photos and tiles as samples. A sample depends only on (seed, epoch, index).

    Args:
        photos: the annotations.
        size: of the samples, pixels a side.
        fill: colour (R, G, B) around expanded photos.
        seed: of the run.
        augment: the augmentation; None for none.
        keep_difficult: use objects marked difficult as targets.
        cache: keeps decoded crops in memory; None to decode them each time.
        crops: what the samples show; None for whole photos.
    """

    def __init__(
        self,
        photos: Annotations,
        size: int,
        fill: tuple[int, int, int],
        seed: int = 0,
        augment: AugmentConfig | None = None,
        keep_difficult: bool = True,
        cache: ImageCache | None = None,
        crops: LabelledCrops | None = None,
    ) -> None:
        self.photos = photos
        self.size = size
        self.fill = fill
        self.seed = seed
        self.augment = augment
        self.keep_difficult = keep_difficult
        self.cache = cache
        self.crops = crops or LabelledCrops.whole(photos)
        self.sizes = self.crops.sizes
        self.decoded: tuple[tuple[int, int], DecodedPhoto] | None = None  # with its number and reduction

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, key: SampleKey) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        """Return a whole batch, which PyTorch's loader does not collate."""
        # Draw all augmentations before decoding: in between, drawing takes more than twice as long, since decoding and
        # resizing evict it from the processor's caches.
        drawn = [self._draw(epoch, index) for epoch, index in keys]
        samples = (self._sample(index, *each) for (_, index), each in zip(keys, drawn, strict=True))
        return collate(samples, len(keys), self.size, self.fill)

    def _draw(self, epoch: int, index: int) -> tuple[Augmentation, np.ndarray]:
        """Draw one sample's augmentation, and return it with the labels `[m]` of its boxes."""
        width, height = self.sizes[index].tolist()
        rows = self.crops.objects(index)
        boxes, labels = self.crops.boxes[rows], self.crops.labels[rows]
        if not self.keep_difficult:
            easy = ~self.crops.difficult[rows]
            boxes, labels = boxes[easy], labels[easy]
        if self.augment is None:
            augmentation = no_augmentation(width, height, boxes)
        else:
            rng = np.random.default_rng((self.seed, epoch, index))
            augmentation = draw_augmentation(rng, width, height, boxes, self.augment)
        return augmentation, labels[augmentation.kept]

    def _sample(self, index: int, augmentation: Augmentation, labels: np.ndarray) -> Sample:
        width, height = self.sizes[index].tolist()
        image = self._pixels(index, augmentation.crop)
        return Sample(index, image, scale_augmentation(augmentation, width, height, image), labels)

    def path(self, index: int) -> str:
        """Return the file of a sample's photo."""
        return self.photos.path(self.crops.photos[index])

    def image(self, photo: int) -> np.ndarray:
        """Decode one whole photo, `[H, W, 3]` uint8 RGB."""
        return self._decode(photo, 1).pixels

    def _decode(self, photo: int, factor: int) -> DecodedPhoto:
        width, height = self.photos.sizes[photo].tolist()
        return read_image(self.photos.path(photo), (width, height), lambda *_: factor)

    def _reduction(self, index: int, drawn: Crop) -> int:
        """Return by how much a sample's photo may be reduced: in training, what is drawn of it keeps the pixels it needs; in
        evaluation, all crops of the photo do, so that it is decoded once for all of them, as `Predictor` does."""
        if self.augment is None:
            return reduction(int(self.sizes[self._crops_beside(index)].min()), self.size)
        width, height = self.sizes[index].tolist()
        shown = min(min(drawn.x2, width) - max(drawn.x1, 0), min(drawn.y2, height) - max(drawn.y1, 0))
        return reduction(shown, self.size)

    def _crops_beside(self, index: int) -> list[int]:
        """Return all samples of a sample's photo."""
        return self.crops.of_photo(int(self.crops.photos[index]), len(self.photos))

    def _pixels(self, index: int, drawn: Crop) -> np.ndarray:
        """Return a sample's crop, of which `drawn` is shown, from the cache if there is one."""
        if self.cache is None:
            return self._read(index, self._reduction(index, drawn))
        if not self.cache.filled[index]:  # decode the photo once for all of its crops
            for each in self._crops_beside(index):
                self.cache.get(each, self._read_for_cache)
            self.decoded = None
        return self.cache.get(index, self._read_for_cache)

    def _read_for_cache(self, index: int) -> np.ndarray:
        """Decode a sample's crop with the pixels that the cache keeps."""
        assert self.cache is not None
        return self._read(index, int(self.cache.reductions[self._crops_beside(index)].min()))

    def _read(self, index: int, factor: int) -> np.ndarray:
        """Decode a sample's crop. With tiles, keep the last photo for the crops that follow."""
        photo = int(self.crops.photos[index])
        if len(self.crops) == len(self.photos):
            return self._decode(photo, factor).pixels
        if self.decoded is None or self.decoded[0] != (photo, factor):
            self.decoded = None  # free its memory before decoding another
            self.decoded = (photo, factor), self._decode(photo, factor)
        return self.decoded[1].part(*self.crops.edges[index].tolist())
