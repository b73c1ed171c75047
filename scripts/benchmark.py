"""How fast each part is, against torchvision's SSD300 and against a floor that no implementation can go below.

    python scripts/benchmark.py --config configs/voc07s.yaml
    python scripts/benchmark.py --device cuda --only step,train --batch-size 32,128,256 --compile

Everything in one table row was run in one process, the variants by turns, and is the median over the rounds: what counts
is the ratio, which a busy machine changes far less than the times. torchvision runs on the memory allocator as it comes,
ours (and the floor) on one that keeps freed memory, which is one of the things that `train.py` sets; --same-allocator
lends torchvision that too.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou
from torchvision.transforms import v2

from data.annotation import DataError
from data.augment import Switches
from data.loader import Samples
from data.photos import Photos, load_photos
from ssd.batch import Batch
from ssd.boxes import to_corners
from ssd.config import Config, ConfigError
from ssd.config_file import load_config
from ssd.dbox import make_dbox_list
from ssd.detect import detect
from ssd.evaluation.voc_eval import voc_eval
from ssd.loss import MultiBoxLoss
from ssd.match import match_batch
from ssd.model import SSD300
from ssd.preparation import IMAGENET, prepare
from ssd.system.device import choose_device, choose_precision, keep_freed_memory
from ssd.system.distributed import World
from ssd.system.stop import StopRequest
from ssd.training.build import build_model, build_schedule, build_step
from ssd.training.optimizer import make_optimizer
from ssd.training.run import Run

OURS, PEER = "ours", "torchvision"
NUM_CLASSES = 20
EVAL_IMAGES, EVAL_DETECTIONS = 4952, 500_000
Runs = dict[str, Callable[[], object]]


class Setting(NamedTuple):
    """What the cases have in common."""

    config: Config
    photos: Photos
    device: torch.device
    dtype: torch.dtype
    rounds: int
    compiled: bool
    profiled: bool
    same_allocator: bool
    arguments: list[str]  # the configuration again, for a command of its own


class Row(NamedTuple):
    """One measured variant."""

    case: str
    variant: str
    seconds: float
    rate: float
    unit: str
    ratio: float  # our rate ÷ this one's


def measure(runs: Runs, setting: Setting, rounds: int | None = None) -> dict[str, float]:
    """Median seconds of each, by turns, in reversed order every other round; the first round is not counted."""
    rounds = rounds or setting.rounds
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    kept = None
    for number in range(rounds + 1):
        for name in list(runs) if number % 2 else reversed(runs):
            keep = setting.same_allocator or not name.startswith(PEER)
            if keep != kept:
                keep_freed_memory(keep)
                runs[name]()  # what the other allocator left behind is not this one's to clear up
                kept = keep
            start = time.perf_counter()
            runs[name]()
            if setting.device.type == "cuda":
                torch.cuda.synchronize(setting.device)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def rows(case: str, amount: int, unit: str, seconds: dict[str, float]) -> list[Row]:
    return [Row(case, name, value, amount / value, unit, value / seconds[OURS]) for name, value in seconds.items()]


def bench_data(setting: Setting, batch_size: int) -> list[Row]:
    """One process, from files on disk to augmented uint8 batches; floor: decoding and one resize."""
    photos, size = setting.photos, IMAGENET.size
    indices = np.random.default_rng(0).permutation(len(photos))[: 8 * batch_size].tolist()
    samples = Samples(photos, size, IMAGENET.fill, switches=Switches())
    # The SSD preset of torchvision's training reference, and the resize that its model does.
    preset = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill={tv_tensors.Image: IMAGENET.fill, "others": 0}),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.Resize((size, size)),
            v2.ToDtype(torch.float32, scale=True),
            v2.SanitizeBoundingBoxes(),
        ]
    )

    def ours() -> None:
        for start in range(0, len(indices), batch_size):
            samples.__getitems__([(0, i) for i in indices[start : start + batch_size]])

    def torchvision() -> None:
        for i in indices:
            image, rows = Image.open(photos.path(i)).convert("RGB"), photos.objects(i)
            corners = torch.from_numpy(photos.boxes[rows])
            boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(image.height, image.width))  # pyright: ignore[reportCallIssue]
            preset(image, {"boxes": boxes, "labels": torch.from_numpy(photos.labels[rows])})

    def floor() -> None:
        for i in indices:
            image = cv2.imread(photos.path(i))
            assert image is not None
            cv2.resize(image, (size, size))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader's worker
    runs: Runs = {OURS: ours, f"{PEER} v2, SSD preset": torchvision, "floor: imread and one resize": floor}
    seconds = measure(runs, setting)
    torch.set_num_threads(threads)
    return rows("data", len(indices), "samples/s", seconds)


def bench_step(setting: Setting, batch_size: int) -> list[Row]:
    """Forward, loss, backward, optimiser; floor: the convolutions alone, forward and backward."""
    device, dtype = setting.device, setting.dtype
    batch = real_batch(setting.photos, batch_size)
    runs: Runs = {"floor: convolutions alone": convolutions(device, dtype, batch_size)}
    runs[OURS] = our_step(setting, batch, compiled=False)
    if setting.compiled:
        runs["ours, compiled"] = our_step(setting, batch, compiled=True)
    runs[f"{PEER} as it comes (float32)"] = torchvision_step(setting, batch, torch.float32, channels_last=False)
    short = str(dtype).removeprefix("torch.")
    runs[f"{PEER} at its best ({short}, channels_last)"] = torchvision_step(setting, batch, dtype, channels_last=True)
    if setting.profiled:
        profile(runs[OURS], device)
    seconds = measure(runs, setting)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        runs[OURS]()
        print(f"step, batch {batch_size}: peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")
    return rows(f"step, batch {batch_size}", batch_size, "images/s", seconds)


def our_step(setting: Setting, batch: Batch, compiled: bool) -> Callable[[], None]:
    model = SSD300(NUM_CLASSES + 1).to(setting.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    criterion = MultiBoxLoss()
    optimizer = make_optimizer(model, "sgd", 1e-3, 0.9, 5e-4)
    network = torch.compile(model) if compiled else model
    loss = torch.compile(criterion.loss) if compiled else criterion.loss
    pinned = batch.images.pin_memory() if setting.device.type == "cuda" else batch.images

    def step() -> None:
        images = prepare(pinned, IMAGENET, setting.device)
        with torch.autocast(setting.device.type, setting.dtype, enabled=setting.dtype != torch.float32):
            loc, conf, dbox_list = network(images)
        matched = criterion.match(batch.targets.to(setting.device), dbox_list)
        loss_l, loss_c = loss(loc, conf, matched, criterion.num_positives(matched))
        (loss_l + loss_c).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def torchvision_step(setting: Setting, batch: Batch, dtype: torch.dtype, channels_last: bool) -> Callable[[], None]:
    model = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1).to(setting.device).train()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=memory_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    images = list(batch.images.permute(0, 3, 1, 2).float().div(255).to(setting.device))
    targets = torchvision_targets(batch, setting.device)

    def step() -> None:
        with torch.autocast(setting.device.type, dtype, enabled=dtype != torch.float32):
            losses = model(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def convolutions(device: torch.device, dtype: torch.dtype, batch_size: int) -> Callable[[], None]:
    """Every convolution of SSD300 on an input of its shape, forward and backward, with nothing between them."""
    model = SSD300(NUM_CLASSES + 1)
    inputs: list[tuple[nn.Conv2d, Tensor]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda conv, args: inputs.append((conv, args[0])))  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        model(torch.zeros(1, 3, 300, 300))
    layers = []
    for place, (conv, example) in enumerate(inputs):
        conv = conv.to(device, dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        x = torch.randn(batch_size, *example.shape[1:], device=device, dtype=dtype)
        # The first layer's input is the photo, which needs no gradient.
        layers.append((conv, x.to(memory_format=torch.channels_last).requires_grad_(place > 0)))
    gradients = [torch.randn_like(conv(x)) for conv, x in layers]

    def run() -> None:
        for (conv, x), gradient in zip(layers, gradients, strict=True):
            conv(x).backward(gradient)
            x.grad = conv.weight.grad = None

    return run


def bench_loss(setting: Setting, batch_size: int) -> list[Row]:
    """Matching, mining and both losses, forward and backward; floor: one cross entropy over all DBoxes."""
    device = setting.device
    batch = real_batch(setting.photos, batch_size)
    dbox_list = make_dbox_list().to(device)
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(batch_size, len(dbox_list), 4, generator=generator).to(device).requires_grad_()
    conf = torch.randn(batch_size, len(dbox_list), NUM_CLASSES + 1, generator=generator).to(device).requires_grad_()
    criterion = MultiBoxLoss()
    targets = batch.targets.to(device)
    labels = match_batch(targets, dbox_list).conf.flatten()
    peer = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1)
    peer_targets = torchvision_targets(batch, device)
    anchors = [to_corners(dbox_list) * 300] * batch_size

    def ours() -> None:
        loss_l, loss_c = criterion((loc, conf, dbox_list), targets)
        (loss_l + loss_c).backward()

    def torchvision() -> None:
        losses = torchvision_loss(peer, {"bbox_regression": loc, "cls_logits": conf}, peer_targets, anchors)
        torch.stack(list(losses.values())).sum().backward()

    def floor() -> None:
        F.cross_entropy(conf.flatten(0, 1), labels).backward()

    def clean(run: Callable[[], None]) -> Callable[[], None]:
        def run_and_clean() -> None:
            run()
            loc.grad = conf.grad = None

        return run_and_clean

    runs: Runs = {"floor: one cross entropy": clean(floor), OURS: clean(ours), PEER: clean(torchvision)}
    return rows(f"loss, batch {batch_size}", batch_size, "images/s", measure(runs, setting, 4 * setting.rounds))


def torchvision_loss(
    model: SSD, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]], anchors: list[Tensor]
) -> dict[str, Tensor]:
    """What torchvision's SSD does in training once it has its head's outputs."""
    matched = [
        model.proposal_matcher(box_iou(target["boxes"], of_image))
        if len(target["boxes"])
        else torch.full((len(of_image),), -1, dtype=torch.int64, device=of_image.device)
        for target, of_image in zip(targets, anchors, strict=True)
    ]
    return model.compute_loss(targets, outputs, anchors, matched)


def bench_detect(setting: Setting, batch_size: int) -> list[Row]:
    """Decoding, thresholds and NMS: with weights that know nothing yet, where nearly every box passes, and with good ones."""
    device = setting.device
    batch = real_batch(setting.photos, batch_size)
    dbox_list = make_dbox_list().to(device)
    peer = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1).eval()
    anchors, shapes = [to_corners(dbox_list) * 300] * batch_size, [(300, 300)] * batch_size
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(batch_size, len(dbox_list), 4, generator=generator).to(device)
    noise = torch.randn(batch_size, len(dbox_list), NUM_CLASSES + 1, generator=generator).to(device)
    # A trained network is sure of most of the background, and finds the objects at several DBoxes each.
    matched = match_batch(batch.targets.to(device), dbox_list)
    trained = noise + 8 * F.one_hot(matched.conf, NUM_CLASSES + 1)
    result = []
    for state, offsets, conf in (("early", loc, 0.3 * noise), ("trained", matched.loc + 0.2 * loc, trained)):

        def ours(offsets: Tensor = offsets, conf: Tensor = conf) -> object:
            return detect(offsets, conf, dbox_list)

        def torchvision(offsets: Tensor = offsets, conf: Tensor = conf) -> object:
            with torch.no_grad():
                return peer.postprocess_detections({"bbox_regression": offsets, "cls_logits": conf}, anchors, shapes)

        passing = (conf.softmax(2)[..., 1:] > 0.01).any(2).float().mean().item()
        seconds = measure({OURS: ours, PEER: torchvision}, setting, 4 * setting.rounds)
        case = f"detect, batch {batch_size}, {state} ({passing:.0%} of the DBoxes pass)"
        result += rows(case, batch_size, "images/s", seconds)
    return result


def bench_eval(setting: Setting, batch_size: int) -> list[Row]:
    """VOC AP of as many photos as VOC2007 test has; peer: the devkit's loop over classes and detections."""
    rng = np.random.default_rng(0)

    def boxes(number: int) -> np.ndarray:
        corner = rng.uniform(1, 300, (number, 2))
        return np.concatenate([corner, corner + rng.uniform(10, 200, (number, 2))], axis=1)

    truths, detections = [], []
    for count in np.bincount(rng.integers(EVAL_IMAGES, size=EVAL_DETECTIONS), minlength=EVAL_IMAGES):
        true, labels = boxes(3), rng.integers(NUM_CLASSES, size=3)
        truths.append({"boxes": true, "labels": labels, "difficult": rng.random(3) < 0.1})
        from_truth = rng.integers(3, size=count)
        near = true[from_truth] + rng.normal(0, 15, (count, 4))
        scores = rng.random(count).astype(np.float32)
        detections.append({"boxes": near, "labels": labels[from_truth], "scores": scores})
    runs: Runs = {
        OURS: lambda: voc_eval(detections, truths, NUM_CLASSES),
        "loop over classes and detections": lambda: loop_eval(detections, truths, NUM_CLASSES),
    }
    return rows("eval", EVAL_IMAGES, "images/s", measure(runs, setting, max(1, setting.rounds // 4)))


def loop_eval(detections: list[dict[str, np.ndarray]], truths: list[dict[str, np.ndarray]], num_classes: int) -> float:
    """Mean AP (11-point) the way the devkit words it, and most ports write it."""
    aps = []
    for label in range(num_classes):
        objects = {}
        for i, truth in enumerate(truths):
            mine = truth["labels"] == label
            objects[i] = (truth["boxes"][mine], truth["difficult"][mine], [False] * int(mine.sum()))
        total = sum(int((~difficult).sum()) for _, difficult, _ in objects.values())
        found = []
        for i, detection in enumerate(detections):
            mine = detection["labels"] == label
            found += [(score, i, box) for score, box in zip(detection["scores"][mine], detection["boxes"][mine], strict=True)]
        found.sort(key=lambda entry: -entry[0])
        true, false = np.zeros(len(found)), np.zeros(len(found))
        for k, (_, i, box) in enumerate(found):
            boxes, difficult, claimed = objects[i]
            size = np.maximum(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]) + 1, 0)
            common = size[:, 0] * size[:, 1]
            areas = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1) + np.prod(box[2:] - box[:2] + 1)
            overlap = common / (areas - common)
            best = int(overlap.argmax()) if len(overlap) else -1
            if best >= 0 and overlap[best] > 0.5:
                if not difficult[best]:
                    (false if claimed[best] else true)[k] = 1
                    claimed[best] = True
            else:
                false[k] = 1
        true, false = true.cumsum(), false.cumsum()
        recall, precision = true / max(total, 1), true / np.maximum(true + false, 1e-9)
        aps.append(np.mean([precision[recall >= t / 10].max(initial=0) for t in range(11)]))
    return float(np.mean(aps))


def bench_train(setting: Setting, batch_size: int) -> list[Row]:
    """The real command with one loader worker, against its own step on a batch that is at hand."""
    config, photos = setting.config, setting.photos
    steps = 4 * setting.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = real_command(setting, folder, batch_size, f"train.iterations={3 * steps}", f"log_every={steps}")
        run = Run(config, World(), setting.device, setting.dtype, folder / "step", StopRequest())
        model, preparation = build_model(run, None)
        schedule = build_schedule(run, len(photos))
        step = build_step(run, model, preparation, schedule)
        batch = real_batch(photos, batch_size)
        own_step: Runs = {"step": lambda: step([batch], 0)}
        before = measure(own_step, setting, steps)["step"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = measure(own_step, setting, steps)["step"]
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "train"][1:]  # the first one warms up
    rate = statistics.median(record["images_per_s"] for record in records)
    waited = statistics.median(record["data_wait"] for record in records)
    case = f"train, batch {batch_size} ({waited:.1%} of the time waiting for data)"
    return rows(case, batch_size, "images/s", {OURS: batch_size / rate, "floor: its step alone": (before + after) / 2})


def bench_start(setting: Setting, batch_size: int) -> list[Row]:
    """From the command to the end of its first step, of one photo: an upper bound of the time to its beginning."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = real_command(setting, folder, 1, "train.iterations=1", "log_every=1")
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            with subprocess.Popen([*command, "--overwrite"], stdout=subprocess.PIPE, text=True) as process:
                for line in process.stdout or ():
                    if line.startswith("epoch"):
                        seconds.append(time.perf_counter() - start)
                        break
                process.communicate()
    num_photos = len(setting.photos)
    return rows(f"start-up, {num_photos} annotations", num_photos, "annotations/s", {OURS: statistics.median(seconds)})


def real_command(setting: Setting, folder: Path, batch_size: int, *overrides: str) -> list[str]:
    """train.py on the configuration's training photos, with an evaluation of only eight of them at its end."""
    paths = [Path(setting.photos.path(i)).resolve() for i in range(min(8, len(setting.photos)))]
    (folder / "few" / "ImageSets" / "Main").mkdir(parents=True)
    for part in ("JPEGImages", "Annotations"):
        (folder / "few" / part).symlink_to(paths[0].parent.parent / part)
    (folder / "few" / "ImageSets" / "Main" / "few.txt").write_text("\n".join(path.stem for path in paths))
    return [
        sys.executable, "train.py", *setting.arguments, f"device={setting.device.type}",
        f"data.val=[{{path: {folder / 'few'}, split: few}}]", "data.workers=1", f"train.batch_size={batch_size}",
        f"train.compile={str(setting.compiled).lower()}", f"output_dir={folder / 'run'}", *overrides,
    ]  # fmt: skip


def real_batch(photos: Photos, batch_size: int) -> Batch:
    """Photos without augmentation, the same every time."""
    samples = Samples(photos, IMAGENET.size, IMAGENET.fill)
    return samples.__getitems__([(0, i % len(photos)) for i in range(batch_size)])


def torchvision_targets(batch: Batch, device: torch.device) -> list[dict[str, Tensor]]:
    """Targets as torchvision's SSD takes them: pixels, labels from 1."""
    return [
        {"boxes": (boxes[labels >= 0] * 300).to(device), "labels": (labels[labels >= 0] + 1).to(device)}
        for boxes, labels in zip(batch.targets.boxes, batch.targets.labels, strict=True)
    ]


def profile(run: Callable[[], object], device: torch.device) -> None:
    """Prints where one run spends its time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    run()
    with torch.profiler.profile(activities=activities) as profiler:
        run()
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=20))


CASES: dict[str, tuple[Callable[[Setting, int], list[Row]], int]] = {  # the case and the batch size it goes by
    "data": (bench_data, 32),
    "step": (bench_step, 8),
    "loss": (bench_loss, 32),
    "detect": (bench_detect, 8),
    "eval": (bench_eval, 1),
    "train": (bench_train, 8),
    "start": (bench_start, 1),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/voc07s.yaml", metavar="FILE", help="its photos, and its run for `train`")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    parser.add_argument("--only", type=_cases, default=list(CASES), metavar="CASE,...", help=f"of {', '.join(CASES)}")
    parser.add_argument("--batch-size", type=_sizes, metavar="N,...", help="instead of each case's own")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds; more is steadier")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile as well")
    parser.add_argument("--profile", action="store_true", help="print where the step spends its time")
    parser.add_argument("--same-allocator", action="store_true", help="let torchvision keep freed memory as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there as well")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change an entry of the configuration")
    options = parser.parse_intermixed_args()
    try:
        setting = make_setting(options)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"torch {torch.__version__}, {setting.device}, {setting.dtype}, {torch.get_num_threads()} threads", flush=True)
    measured: list[Row] = []
    for name in options.only:
        run, own_size = CASES[name]
        for batch_size in options.batch_size or [own_size]:
            new = run(setting, batch_size)
            show(new)
            measured += new
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in measured], indent=1) + "\n")
    return 0


def _cases(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    return names


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected whole numbers above 0, such as 32,128, got {text!r}")
    return sizes


def make_setting(options: Any) -> Setting:
    config = load_config(options.config, options.overrides)
    device = choose_device(options.device)
    data = config.data
    photos = load_photos(data.train, data.root, data.class_names, config.seed, data.other_classes == "ignore").photos
    cv2.setNumThreads(0)
    dtype = choose_precision("auto", device)
    arguments = ["--config", options.config, *options.overrides]
    return Setting(
        config, photos, device, dtype, options.rounds, options.compile, options.profile, options.same_allocator, arguments
    )


def show(measured: list[Row]) -> None:
    for previous, row in zip([None, *measured], measured, strict=False):
        if previous is None or previous.case != row.case:
            print(f"\n{row.case}")
        figures = f"{row.seconds * 1e3:10.1f} ms  {row.rate:9.1f} {row.unit:13}  ours is ×{row.ratio:.2f}"
        print(f"  {row.variant:46}  {figures}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
