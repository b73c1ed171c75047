"""The weights that a first run starts from, given its photos, speed, time and network."""

import http.server
import socket
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from ssd.architecture import ARCHITECTURES
from ssd.autoconfig.proposal import describe_plan, render, run_settings
from ssd.autoconfig.recipes import COCO, LIGHT, SCRATCH, SLIM, Recipe, Setting, batch_size, recipes_of
from ssd.autoconfig.starts import Budget, choose_start
from ssd.autoconfig.timing import Timings
from ssd.config.entries import top_entry
from ssd.config.file import parse_config
from ssd.config.yaml import parse_yaml
from ssd.system import download
from ssd.weights import sources
from tests.helpers.offline import refuse

DATA = {"data.train": Setting([{"path": "a"}]), "data.val": Setting([{"path": "b"}])}
COVERAGES = {"voc": 0.95, "coco": 0.96}
# Photos per second: the full network; slim, light and from scratch; half.
SLOW, FAST, GPU, SLOWEST = (2, 20, 8), (8, 60, 25), (300, 900, 600), (1, 10, 3)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a function that makes only the named weights available; `net` stands for a network connection."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()

    def there(*names: str) -> None:
        for name in sources.SHIPPED:
            monkeypatch.setitem(sources.SHIPPED, name, tmp_path / f"{name}.pt")
        for name in names:
            if name in sources.SHIPPED:
                sources.SHIPPED[name].touch()
            elif name != "net":
                source, _, architecture = name.partition(" of ")
                sources.hub_file(sources.torchvision_url(source, ARCHITECTURES[architecture or "ssd300"])).touch()
        monkeypatch.setattr(sources, "fetch", (lambda path, *_, **__: path.touch()) if "net" in names else refuse)
        monkeypatch.setattr(sources, "ask", (lambda *_, **__: None) if "net" in names else refuse)

    return there


def timings(recipe: Recipe, device: str, num_photos: int, speed: float) -> Timings:
    return Timings(8, batch_size(recipe, device, num_photos) / speed, 0.01 * num_photos, 1, 20 / speed, 3)


def start(budget: Budget, num_photos: int, speeds: tuple[float, ...], classes: Sequence[str] = ("mug",), share: float = 0.9):
    timed = []

    def measure(recipe):
        timed.append(recipe.label)
        fast = recipe.name in ("slim", "scratch") or recipe.architecture == LIGHT
        return timings(recipe, budget.device, num_photos, speeds[2 if recipe.name == "half" else fast])

    return choose_start(budget, num_photos, classes, measure, lambda _: share), timed


@pytest.mark.parametrize(
    "device, num_photos, speeds, there, name, freeze, size, epochs",
    [
        ("cpu", 5, SLOW, ["coco", "slim"], "slim", "conv3_3", 8, 1200),  # 6,000 samples
        ("cpu", 5, FAST, ["net", "slim"], "coco", "conv3_3", 8, 1200),
        ("cpu", 60, SLOW, ["coco", "slim"], "slim", "conv3_3", 8, 150),
        ("cpu", 200, SLOW, ["coco", "slim"], "slim", "conv3_3", 8, 150),
        ("cpu", 200, SLOW, ["half", "slim"], "half", "conv3_3", 8, 62),
        ("cpu", 200, SLOW, ["half"], "half", "conv3_3", 8, 62),
        ("cpu", 200, SLOWEST, ["half", "slim"], "slim", "conv3_3", 8, 77),  # half would see 4,480 photos
        ("cpu", 200, SLOWEST, ["half"], "half", "conv3_3", 8, 22),  # too slow, but without an alternative
        ("cpu", 200, FAST, ["net", "slim"], "coco", "conv3_3", 16, 62),
        ("cpu", 200, FAST, ["coco", "slim"], "coco", "conv3_3", 16, 62),  # no network, but in the hub folder
        ("cpu", 200, FAST, ["imagenet", "slim"], "imagenet", "conv3_3", 16, 62),
        ("cpu", 200, FAST, ["slim"], "slim", "conv3_3", 8, 150),
        ("cpu", 200, SLOW, ["net"], "coco", "conv3_3", 16, 14),  # too slow, but without an alternative
        ("cpu", 200, SLOW, [], "scratch", None, 16, 156),
        ("cpu", 5000, SLOW, ["coco", "slim"], "slim", "conv3_3", 8, 6),
        ("cpu", 50_000, SLOW, ["coco", "slim"], "slim", "conv3_3", 8, 0),
        ("cpu", 5, SLOW, ["net", "slim"], "coco of light", "block3", 8, 1200),
        ("cpu", 200, SLOW, ["net", "slim"], "coco of light", "block3", 16, 100),
        ("cpu", 200, FAST, [f"coco of {LIGHT}", "slim"], "coco of light", "block3", 16, 100),  # without the full network's
        ("cpu", 200, SLOW, [f"coco of {LIGHT}", "coco", "slim"], "coco of light", "block3", 16, 100),
        ("cpu", 200, FAST, [f"imagenet of {LIGHT}", "slim"], "slim", "conv3_3", 8, 150),
        ("cpu", 50_000, SLOW, ["net", "slim"], "coco of light", "block3", 16, 0),
        ("cuda", 5, GPU, ["net", "slim"], "coco", "conv3_3", 8, 1200),
        ("cuda", 200, GPU, ["net", "slim"], "coco", None, 32, 100),
        ("cuda", 5000, GPU, ["net", "slim"], "coco", None, 32, 91),
        ("cuda", 200, GPU, ["slim"], "slim", None, 32, 150),
        ("cuda", 200, GPU, ["half", "slim"], "half", None, 32, 150),
        ("cuda", 200, GPU, [], "scratch", None, 32, 300),
    ],
)
def test_choices(place, device, num_photos, speeds, there, name, freeze, size, epochs):
    place(*there)
    chosen, _ = start(Budget(device, 30), num_photos, speeds)
    name, _, network = name.partition(" of ")
    assert (chosen.recipe.name, chosen.recipe.architecture) == (name, LIGHT if network else "ssd300")
    text = render({**DATA, **run_settings(chosen, device, num_photos, 50, COVERAGES)})
    config = parse_config(parse_yaml(text, top_entry()))  # refuses settings that conflict
    assert config.model.architecture == chosen.recipe.architecture
    assert config.model.pretrained == ("none" if name == "scratch" else name)
    assert config.model.freeze == freeze
    assert config.train.batch_size == size
    assert config.train.epochs == (epochs or None)
    assert config.loss.min_neg == 3
    assert config.model.dboxes == ("voc" if name in sources.SHIPPED else "coco")
    assert (config.train.optimizer, config.train.lr) == {
        "coco": ("sgd", 1e-3), "imagenet": ("sgd", 1e-3), "half": ("adamw", 1e-3), "slim": ("adamw", 1e-3),
        "scratch": ("adamw", 1e-3), "coco of light": ("adamw", 5e-4),
    }[f"{name} of {network}" if network else name]  # fmt: skip
    assert chosen.length.seconds <= 30 * 60
    iterations = chosen.length.iterations
    assert config.train.warmup == min(100, iterations // 20)
    assert 1 - config.train.ema == pytest.approx(3 / iterations, rel=0.05)
    assert iterations / config.eval.every <= 10
    assert config.eval.patience == (None if name in ("scratch", "half", "slim") or iterations / config.eval.every <= 5 else 5)
    for line in text.splitlines():
        assert " # " in line or not line.startswith("  ") or re_data(line), line


@pytest.mark.parametrize(
    "classes, share, timed, lr, freeze, note",
    [
        (["mug"], 0.9, ["half"], 1e-3, "conv3_3", ""),
        (["mug"], None, ["half"], 1e-3, "conv3_3", ""),  # too few objects to tell
        (["cat", "mug"], 0.25, ["half"], 1e-3, "conv3_3", ""),
        (["cat", "television"], 0.25, ["half"], 5e-5, "conv3_3", "the half and slim weights know all these classes: "),
        (
            ["mug"],
            0.24,
            ["slim"],
            4e-3,
            None,
            "the photos are unlike VOC's: before training, slim recognises 24% of the objects",
        ),
        (["cat"], 0.0, ["slim"], 4e-3, None, "the photos are unlike VOC's: "),  # thermal images, say
    ],
)
@pytest.mark.parametrize("num_photos", [30, 200])
def test_shipped_weights_change_as_much_as_they_have_to(place, num_photos, classes, share, timed, lr, freeze, note):
    place("half", "slim")
    chosen, labels = start(Budget("cpu", 30, download=False), num_photos, FAST, classes, share)
    settings = run_settings(chosen, "cpu", num_photos, 50, COVERAGES)
    assert labels == timed
    assert settings["train.lr"].value == lr
    assert settings.get("model.freeze", Setting(None)).value == freeze
    assert any(note in line for line in chosen.notes) if note else not chosen.notes


def re_data(line: str) -> bool:
    return line.strip().startswith(("train:", "val:"))


def test_the_plan_says_what_more_time_or_speed_would_gain(place):
    place("coco", "slim")
    chosen, timed = start(Budget("cpu", 30), 200, SLOW)
    assert timed == ["coco", "slim"]
    shown = describe_plan(chosen, Budget("cpu", 30), 200)
    assert "start: slim; the full network would see 2,800 photos in 30 minutes here and needs 4,800\n" in shown
    assert "note: the full network needs --minutes 48, or a machine 1.7 times as fast" in shown
    assert shown.endswith("in all; with --minutes 48: the full network")
    chosen, _ = start(Budget("cpu", 10), 200, SLOW)
    assert describe_plan(chosen, Budget("cpu", 10), 200).endswith("; with --minutes 29: 150 epochs")  # no more with 40
    assert start(Budget("cpu", 29), 200, SLOW)[0].length.epochs == 150
    chosen, _ = start(Budget("cpu", 60), 200, FAST)
    assert describe_plan(chosen, Budget("cpu", 60), 200).endswith("; more than 100 epochs would bring little")
    chosen, timed = start(Budget("cpu", 60), 200, SLOW)
    assert (chosen.recipe.name, timed) == ("coco", ["coco"])
    chosen, _ = start(Budget("cpu", 1), 200, (0.1, 0.5))
    assert "warning: --minutes 1 is too short" in describe_plan(chosen, Budget("cpu", 1), 200)


def test_nothing_is_downloaded_without_need(place, monkeypatch):
    place("net", "slim")
    monkeypatch.setattr(sources, "fetch", lambda *_, **__: pytest.fail("downloaded"))
    assert start(Budget("cpu", 30, download=False), 200, FAST)[0].recipe is SLIM
    chosen, timed = start(Budget("cpu", 30, scratch=True), 200, FAST)
    assert (chosen.recipe, timed) == (SCRATCH, ["scratch"])
    assert not any(note.startswith("warning") for note in chosen.notes)
    fetched = []
    monkeypatch.setattr(sources, "fetch", lambda path, *_, **__: fetched.append(path.name))
    assert start(Budget("cpu", 30), 200, SLOW)[0].recipe.architecture == LIGHT
    (name,) = fetched  # not the full network's 136 MB: it is known to be too slow without them
    assert name.startswith("ssdlite320_mobilenet_v3_large_coco")


def test_the_light_network_replaces_one_that_is_too_slow_and_says_so(place):
    place("net", "slim")
    chosen, timed = start(Budget("cpu", 30), 200, SLOW)
    assert timed == ["coco", f"{LIGHT}, coco"]
    shown = describe_plan(chosen, Budget("cpu", 30), 200)
    reason = "the full network would see 2,800 photos in 30 minutes here and needs 4,800"
    assert f"network: {LIGHT}; {reason}\nstart: coco; trained on COCO's 80 classes\n" in shown
    assert shown.endswith("in all; with --minutes 48: the full network")
    assert f"architecture: {LIGHT} # {reason}\n" in render(run_settings(chosen, "cpu", 200, 50, COVERAGES))
    place(f"coco of {LIGHT}", "slim")
    shown = describe_plan(start(Budget("cpu", 30, download=False), 200, FAST)[0], Budget("cpu", 30), 200)
    assert f"network: {LIGHT}; the full network's COCO weights are not in " in shown


@pytest.mark.parametrize(
    "architecture, there, name",
    [
        ("ssd300", ["net", "slim"], "slim"),  # never the light one: the user named another
        ("ssd512", ["net", "slim"], "slim"),
        ("ssd512", ["net"], "coco"),
        ("ssd512", ["imagenet"], "imagenet"),
        (LIGHT, ["net", "slim"], "coco"),
        (LIGHT, [f"imagenet of {LIGHT}", "slim"], "imagenet"),
        (LIGHT, ["coco", "slim"], "scratch"),  # weights of other networks
        (f"{LIGHT}_full", [], "scratch"),
    ],
)
def test_the_user_chooses_the_network(place, architecture, there, name):
    place(*there)
    chosen, _ = start(Budget("cpu", 30, architecture=architecture), 200, SLOW)
    assert (chosen.recipe.name, chosen.recipe.architecture) == (name, architecture)
    text = render({**DATA, **run_settings(chosen, "cpu", 200, 50, COVERAGES)})
    config = parse_config(parse_yaml(text, top_entry()))
    assert config.model.architecture == architecture
    assert ("# requested by --architecture\n" in text) == (architecture != "ssd300")
    warnings = [note for note in chosen.notes if note.startswith("warning")]
    assert len(warnings) == (name == "scratch")
    if warnings:
        assert f"and the shipped weights do not fit {architecture}: training starts from scratch" in warnings[0]


def test_a_warning_without_any_weights(place):
    place()
    (warning,) = start(Budget("cpu", 30, download=False), 200, FAST)[0].notes
    assert warning.startswith("warning: COCO weights are not in ")
    assert "training starts from scratch" in warning


def test_a_network_too_large_for_the_memory(place):
    place("net", "coco", "slim")

    def measure(recipe):
        if recipe is COCO:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return timings(recipe, "cuda", 200, 900)

    reason = "the full network does not fit into memory"
    chosen = choose_start(Budget("cuda", 30, download=False), 200, ["mug"], measure, lambda _: 0.9)
    assert (chosen.recipe, chosen.why) == (SLIM, reason)
    chosen = choose_start(Budget("cuda", 30), 200, ["mug"], measure, lambda _: 0.9)
    assert (chosen.recipe, chosen.why_network) == (recipes_of(LIGHT).pretrained[0], reason)


@pytest.fixture
def address(monkeypatch):
    """Return a function that sets another address for COCO's weights, and the port of a server that never answers."""
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(sources, "STALL", 0.3)

    def at(url: str) -> None:
        monkeypatch.setattr(sources, "torchvision_url", lambda source, _=False: f"{url}/{source}-12345678.pth")

    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield SimpleNamespace(at=at, silent=silent.getsockname()[1])


@pytest.mark.parametrize("kind", ["refused", "silent", "unknown host"])
def test_a_missing_network_costs_only_seconds(place, address, monkeypatch, kind):
    place("slim")
    monkeypatch.setattr(sources, "ask", download.ask)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    hosts = {"refused": f"127.0.0.1:{port}", "silent": f"127.0.0.1:{address.silent}", "unknown host": "nowhere.invalid"}
    address.at(f"http://{hosts[kind]}")
    began = time.monotonic()
    chosen, timed = start(Budget("cpu", 30), 200, FAST)
    assert time.monotonic() - began < 10
    assert chosen.recipe is SLIM
    assert timed == ["slim"]  # timing the full network may take minutes
    (note,) = chosen.notes
    assert note.startswith("note: coco-12345678.pth cannot be downloaded (http://")
    assert f"into {sources.hub_file('x').parent}" in note


def test_weights_are_downloaded_if_there_is_a_network(place, address, tmp_path, monkeypatch):
    place("slim")
    monkeypatch.setattr(sources, "fetch", download.fetch)
    monkeypatch.setattr(sources, "ask", download.ask)
    import hashlib

    digest = hashlib.sha256(b"weights").hexdigest()[:8]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"weights")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/ssd-{digest}.pth"
        monkeypatch.setattr(sources, "torchvision_url", lambda *_: url)
        chosen, _ = start(Budget("cpu", 30), 200, FAST)
        server.shutdown()
    assert chosen.recipe is COCO
    assert (tmp_path / f"checkpoints/ssd-{digest}.pth").read_bytes() == b"weights"
