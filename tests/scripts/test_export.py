import io
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stdout

import cv2
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from PIL import Image

from data.shapes import CLASSES
from scripts import detect, export
from ssd.config.schema import PostprocessConfig
from ssd.deploy import export as export_module
from ssd.deploy import forms, program, quantise
from ssd.deploy.export import EXAMPLE, FREE, OPSET, _product, export_onnx, metadata_of, resize
from ssd.inference.predictor import Predictor
from ssd.system.images import read_photo
from ssd.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def network(checkpoint):
    """The checkpoint's network as a graph, shared since exporting is slow."""
    predictor = Predictor.from_checkpoint(checkpoint, "cpu", "float32")
    graph = export_module.network_graph(predictor.model, predictor.preprocessing)
    with pytest.MonkeyPatch.context() as patch:
        for module in (export_module, forms):
            patch.setattr(module, "network_graph", lambda model, preprocessing: graph)
        yield graph


@pytest.fixture(scope="module")
def exported(checkpoint, network, shapes_root, tmp_path_factory):
    """An ONNX file, and the output of the command."""
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    photos = ["--photos", str(shapes_root / "shapes/JPEGImages")]
    with redirect_stdout(io.StringIO()) as shown:
        assert export.main([str(checkpoint), "--output", str(path), "--score", "0.35", *photos]) == 0
    return path, shown.getvalue()


def test_the_file_is_checked_at_once(exported):
    path, shown = exported
    assert f"written: {path}" in shown
    assert "checked on 16 photos with" in shown
    assert "with 0 detections" not in shown


def test_any_batch_size_agrees_with_pytorch(exported, checkpoint, shapes_root):
    session = onnxruntime.InferenceSession(str(exported[0]))
    run, _ = program.load_program(exported[0])
    paths = sorted((shapes_root / "shapes/JPEGImages").iterdir())[:6]
    predictor = Predictor.from_checkpoint(checkpoint, "cpu", "float32", score_thresh=0.35)
    for size, numbers in (((200, 310), (0, 1, 2)), ((301, 299), (3,)), ((600, 500), (4, 5))):
        photos = [cv2.resize(read_photo(paths[i]), size) for i in numbers]
        num_detections, box_difference, score_difference = program.compare(run, predictor, photos)
        assert num_detections > 3
        assert box_difference < 0.5
        assert score_difference < 1e-3
        boxes, labels, scores = session.run(["boxes", "labels", "scores"], {"images": np.stack(photos)})
        assert boxes.shape == (len(photos), 200, 4)
        for i, photo in enumerate(photos):
            _, (alone,), (scores_alone,) = session.run(["boxes", "labels", "scores"], {"images": photo[None]})
            assert abs((labels[i] >= 0).sum() - (alone >= 0).sum()) <= 1  # one may be at the very threshold
            count = (labels[i] >= 0).sum()
            np.testing.assert_allclose(scores[i, : count - 1], scores_alone[: count - 1], atol=1e-3)
            assert (scores[i, :count] > 0.35).all()
            assert (np.diff(scores[i]) <= 0).all()
            assert (labels[i, count:] == -1).all()
            assert not scores[i, count:].any()
            assert not boxes[i, count:].any()


def test_openvino_agrees_in_float32(exported, shapes_root):
    session = onnxruntime.InferenceSession(exported[0])
    network = openvino.compile_model(exported[0], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for path in sorted((shapes_root / "shapes/JPEGImages").iterdir())[:4]:
        images = read_photo(path)[None]
        boxes, labels, scores = session.run(["boxes", "labels", "scores"], {"images": images})
        their_boxes, their_labels, their_scores = network(images).values()
        sure = scores[0] > 0.36  # one may be at the very threshold of 0.35
        assert sure.any()
        np.testing.assert_array_equal(their_labels[0, sure], labels[0, sure])
        np.testing.assert_allclose(their_scores[0, sure], scores[0, sure], atol=1e-4)
        np.testing.assert_allclose(their_boxes[0, sure], boxes[0, sure], atol=1e-2)


def test_metadata_has_names_and_thresholds(exported):
    metadata = onnxruntime.InferenceSession(str(exported[0])).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert json.loads(metadata["thresholds"]) == {"score_thresh": 0.35, "nms_thresh": 0.45, "top_k": 200}


@pytest.fixture(scope="module")
def resize_in_onnx(tmp_path_factory):
    """The resize alone, in ONNX Runtime."""

    class Resize(torch.nn.Module):
        def forward(self, images):
            return resize(images, 300)

    path = tmp_path_factory.mktemp("resize") / "resize.onnx"
    options = {"input_names": ["images"], "dynamic_shapes": [FREE], "dynamo": True, "opset_version": OPSET, "verbose": False}
    torch.onnx.export(Resize().eval(), (torch.zeros(EXAMPLE, dtype=torch.uint8),), path, **options)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


@pytest.mark.parametrize("height, width", [(300, 300), (241, 517), (1200, 900), (40, 30), (1, 1), (1, 2000), (3000, 2)])
def test_resize_equals_opencv(resize_in_onnx, height, width):
    rng = np.random.default_rng(0)
    shape = (height, width, 3)
    photos = np.stack([rng.integers(0, 256, shape), rng.choice([0, 255], shape), np.full(shape, 255)]).astype(np.uint8)
    expected = np.stack([cv2.resize(photo, (300, 300)) for photo in photos])
    np.testing.assert_array_equal(resize(torch.from_numpy(photos), 300).numpy(), expected)
    np.testing.assert_array_equal(resize_in_onnx(photos), expected)


def test_products_of_the_resize_are_exact():
    """All possible products: each value of a row by each weight."""
    values = torch.arange(255 * 2048 // 2**4 + 1)
    for weights in torch.arange(2049).split(256):
        expected = (values[:, None] * weights) // 2**16
        assert torch.equal(_product(values[:, None].float(), weights.float()), expected.float())


def test_the_example_runs_without_this_project(exported, checkpoint, shapes_root, tmp_path):
    """With any class names, and any character set of the terminal."""
    names = ["US$5_$x^", '"a", b', "tab\tin", "手袋", "<tag>&"]
    proto = onnx.load(exported[0])
    onnx.helper.set_model_props(proto, metadata_of(names, PostprocessConfig()))
    onnx.save(proto, tmp_path / "a.onnx")
    script = tmp_path / "run_onnx.py"
    script.write_text((ROOT / "scripts/run_onnx.py").read_text())
    photo = sorted((shapes_root / "shapes/JPEGImages").iterdir())[0]
    (expected,) = Predictor.from_checkpoint(checkpoint, "cpu", "float32", score_thresh=0.35)(photo)
    Image.new("1", (16_384, 8_200)).save(tmp_path / "bomb.png")
    message = "error: bomb.png: cannot be decoded, or has more than 134,217,728 pixels"
    for encoding, more in (("utf-8", []), ("cp1252", ["bomb.png"])):
        words = [sys.executable, "-W", "error", str(script), "a.onnx", str(photo), *more]
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, env=environment, timeout=60)
        assert (done.returncode, done.stderr.decode().startswith(message)) == ((1, True) if more else (0, False)), done.stderr
        found = [line.removeprefix(f"{photo} ").rsplit(" ", 5)[0] for line in done.stdout.decode(encoding).splitlines()]
        shown = [name.encode(encoding, "backslashreplace").decode(encoding) for name in names]
        assert found == [shown[label] for label in expected.labels]


def test_a_note_says_that_the_file_has_no_tiles(checkpoint, shapes_root, tmp_path, capsys):
    photos = shapes_root / "shapes/JPEGImages"
    state = load_checkpoint(checkpoint)
    assert export.main([str(checkpoint), "--photos", str(photos), "--output", str(tmp_path / "a.onnx")]) == 0
    assert "tiles" not in capsys.readouterr().out
    state.config["data"] = {"tiles": {"size": 150, "overlap": 0.2}}
    save_checkpoint(tmp_path / "best.pt", state)
    assert export.main([str(tmp_path / "best.pt"), "--photos", str(photos)]) == 0
    note = "the network was trained on tiles of 150 pixels; the file and the numbers below use whole photos"
    assert note in capsys.readouterr().out


# Runs a raw network without this project: in a folder with the three files, on photos given as .npy files.
WITHOUT_PROJECT = """
import sys, numpy as np
sys.path = [sys.path[0], *(path for path in sys.path if path.endswith(("-packages", ".zip")) or "lib" in path)]
import decode_heads
settings = decode_heads.load("raw.json")
photos = [np.load(path) for path in sys.argv[2:]]
images = decode_heads.prepare(photos, settings)
if sys.argv[1] == "opencv":
    import cv2
    network = cv2.dnn.readNetFromONNX("raw.onnx")
    network.setInput(images)
    outputs = network.forward(["loc", "conf"])
elif sys.argv[1] == "openvino":
    import openvino
    outputs = openvino.compile_model("raw.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images).values()
else:
    import onnxruntime
    outputs = onnxruntime.InferenceSession("raw.onnx").run(["loc", "conf"], {"images": images})
assert not {"torch", "ssd"} & set(sys.modules)
for number, (photo, loc, conf) in enumerate(zip(photos, *outputs)):
    boxes, labels, scores = decode_heads.decode(loc, conf, photo.shape, settings)
    np.savez(f"{number}.npz", boxes=boxes, labels=labels, scores=scores)
"""


@pytest.fixture(scope="module")
def raw_files(checkpoint, shapes_root, tmp_path_factory):
    """A raw network of batch 2 with a threshold for each class, the output of the command, and the checkpoint."""
    folder = tmp_path_factory.mktemp("raw")
    state = load_checkpoint(checkpoint)
    state.class_scores = {name: 0.35 + 0.01 * i for i, name in enumerate(CLASSES)}
    save_checkpoint(folder / "best.pt", state)
    words = ["--heads", "raw", "--batch", "2", "--score", "auto", "--output", str(folder / "raw.onnx")]
    with redirect_stdout(io.StringIO()) as shown:
        assert export.main([str(folder / "best.pt"), *words, "--photos", str(shapes_root / "shapes/JPEGImages")]) == 0
    return folder, shown.getvalue()


def test_a_raw_network_comes_with_all_that_decodes_it(raw_files):
    folder, shown = raw_files
    assert {path.name for path in folder.iterdir()} >= {"raw.onnx", "raw.json", "decode_heads.py"}
    assert "beside it: raw.json, decode_heads.py; operators: Conv " in shown
    assert "checked on 16 photos with" in shown
    scores = json.loads((folder / "raw.json").read_text("utf-8"))["postprocess"]["score_thresh"]
    assert scores == {name: 0.35 + 0.01 * i for i, name in enumerate(CLASSES)}


def test_a_complete_file_has_a_threshold_for_each_class(raw_files, network, shapes_root, tmp_path, capsys):
    photos = shapes_root / "shapes/JPEGImages"
    words = [str(raw_files[0] / "best.pt"), "--output", str(tmp_path / "a.onnx"), "--photos", str(photos)]
    assert export.main([*words, "--score", "auto"]) == 0
    assert "checked on 16 photos with" in capsys.readouterr().out  # against the checkpoint with the same thresholds
    run, metadata = program.load_program(tmp_path / "a.onnx")
    least = json.loads(metadata["thresholds"])["score_thresh"]
    assert least == pytest.approx({name: 0.35 + 0.01 * i for i, name in enumerate(CLASSES)})
    found = [program.real_detections(run(read_photo(path)[None])) for path in sorted(photos.iterdir())]
    scores, labels = (np.concatenate([getattr(entry, name) for entry in found]) for name in ("scores", "labels"))
    limits = np.array([least[name] for name in CLASSES], np.float32)
    assert (scores >= limits[labels]).all()
    assert export.main([*words, "--score", "0.35"]) == 0
    more = program.load_program(tmp_path / "a.onnx")[0]
    every = [program.real_detections(more(read_photo(path)[None])) for path in sorted(photos.iterdir())]
    expected = sum(int((entry.scores >= limits[entry.labels]).sum()) for entry in every)
    assert expected == len(scores) < sum(len(entry.scores) for entry in every)


@pytest.mark.parametrize("tool", ["onnxruntime", "openvino", "opencv"])
def test_a_raw_network_finds_the_same_without_this_project(tool, raw_files, shapes_root, tmp_path):
    for name in ("raw.onnx", "raw.json", "decode_heads.py"):
        (tmp_path / name).write_bytes((raw_files[0] / name).read_bytes())
    photos = [read_photo(path) for path in sorted((shapes_root / "shapes/JPEGImages").iterdir())[:2]]
    for number, photo in enumerate(photos):
        np.save(tmp_path / f"{number}.npy", photo)
    (tmp_path / "use.py").write_text(WITHOUT_PROJECT)
    words = [sys.executable, "use.py", tool, "0.npy", "1.npy"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr
    predictor = Predictor.from_checkpoint(raw_files[0] / "best.pt", "cpu", "float32", score_thresh="auto")
    for number, ours in enumerate(predictor.detect(photos)):
        theirs = np.load(tmp_path / f"{number}.npz")
        assert len(ours.labels) > 1
        np.testing.assert_array_equal(theirs["labels"], ours.labels)
        np.testing.assert_allclose(theirs["boxes"], ours.boxes, atol=0.01)
        np.testing.assert_allclose(theirs["scores"], ours.scores, atol=1e-4)


@pytest.mark.parametrize("form", ["complete", "raw"])
def test_a_file_names_nothing_on_this_machine(form, raw_files, exported):
    content = {"complete": exported[0], "raw": raw_files[0] / "raw.onnx"}[form].read_bytes()
    assert b"site-packages" not in content
    assert str(ROOT).encode() not in content


def test_without_photos_nothing_is_written(checkpoint, tmp_path, capsys):
    state = load_checkpoint(checkpoint)
    state.config["data"] = {"classes": list(CLASSES), "root": str(tmp_path), "train": [{"path": "a"}], "val": [{"path": "a"}]}
    save_checkpoint(tmp_path / "best.pt", state)
    assert export.main([str(tmp_path / "best.pt")]) == 2
    assert "no such folder" in (shown := capsys.readouterr().err)
    assert "name a folder with --photos, or give theirs as data.root=FOLDER" in shown
    assert export.main([str(tmp_path / "best.pt"), "--photos", str(tmp_path)]) == 2
    assert "contains no photos" in capsys.readouterr().err
    assert not (tmp_path / "best.onnx").exists()


def test_a_file_runs_on_photos_with_one_detection_or_none(checkpoint, shapes_root, tmp_path, capsys):
    photos = sorted((shapes_root / "shapes/JPEGImages").iterdir())
    scores = [entry.scores for entry in Predictor.from_checkpoint(checkpoint, "cpu", "float32", 0.1)(photos[:6])]
    # At most one detection in each of these photos; ONNX Runtime rounds differently from PyTorch.
    score = float(max(second for _, second, *_ in scores)) + 1e-4
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photos[:6]:
        (folder / path.name).symlink_to(path)
    words = ["--score", str(score), "--top-k", "100000", "--photos", str(folder), "--output", str(tmp_path / "a.onnx")]
    assert export.main([str(checkpoint), *words]) == 0
    total = sum((each > score).sum() for each in scores)
    assert 0 < total <= 6
    assert f"checked on 6 photos with {total} detections, a blank photo" in capsys.readouterr().out
    run, metadata = program.load_program(tmp_path / "a.onnx")
    # At most 400 detections of each class enter NMS.
    assert json.loads(metadata["thresholds"]) == {"score_thresh": score, "nms_thresh": 0.45, "top_k": 400 * len(CLASSES)}
    for path, own in zip(photos[:6], scores, strict=False):
        _, labels, _ = run(read_photo(path)[None])
        assert (labels >= 0).sum() == (own > score).sum()
    assert {(own > score).sum() for own in scores} >= {1}


@pytest.fixture(scope="module")
def run_checkpoint(checkpoint, network, shapes_root, tmp_path_factory):
    """A checkpoint and its run, whose ground truth is the checkpoint's own detections."""
    root = tmp_path_factory.mktemp("found")
    photos = shapes_root / "shapes/JPEGImages"
    words = ["--formats", "voc", "--no-pictures", "--output", str(root / "set"), "--score", "0.5"]
    assert detect.main([str(checkpoint), str(photos), *words]) == 0
    (root / "set/JPEGImages").symlink_to(photos)
    state = load_checkpoint(checkpoint)
    source = [{"path": "set", "val_fraction": 0.3}]
    data = {"classes": list(CLASSES), "root": str(root)}
    state.config["data"] = {**data, "train": [{**source[0], "split": "train"}], "val": [{**source[0], "split": "val"}]}
    state.config["eval"] = {"metric": "voc10"}
    path = root / "best.pt"
    save_checkpoint(path, state)
    return path


def test_int8_is_calibrated_and_evaluated(run_checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(export, "NUM_CALIBRATION", 6)
    assert export.main([str(run_checkpoint), "--int8", "--score", "0.35", "--max-loss", "1"]) == 0
    shown = capsys.readouterr().out
    path = run_checkpoint.with_suffix(".int8.onnx")
    _, metadata = program.load_program(path)
    recorded = json.loads(metadata["int8"])
    assert recorded["metric"] == "mAP@0.5 (VOC10 area)"
    assert recorded["float32"] > 0.9  # it is graded on what it finds
    assert f"float32: mAP@0.5 (VOC10 area) {recorded['float32']:.4f} on {recorded['photos']} validation photos" in shown
    assert json.loads(metadata["thresholds"])["score_thresh"] == 0.35
    network = onnx.load(path)
    kinds = Counter(node.op_type for node in network.graph.node)
    assert kinds["QuantizeLinear"] > 20
    weights = {each.name: each.data_type for each in network.graph.initializer if "backbone" in each.name and each.dims}
    assert {kind for name, kind in weights.items() if "quantized" in name and "bias" not in name} == {onnx.TensorProto.INT8}
    predictor = Predictor.from_checkpoint(run_checkpoint, "cpu", "float32", score_thresh=0.35)
    export_onnx(path.with_name("float.onnx"), predictor.model, predictor.preprocessing, predictor.classes, predictor.options)
    # The weights alone: in a network as narrow as this one, the nodes that quantise take up much of the file.
    assert size_of_weights(network) < 0.3 * size_of_weights(onnx.load(path.with_name("float.onnx")))
    assert path.stat().st_size < path.with_name("float.onnx").stat().st_size
    assert str(ROOT).encode() not in path.read_bytes()


def size_of_weights(network: onnx.ModelProto) -> int:
    """Return the bytes of the weights of backbone and extra layers; the heads may stay in float32."""
    weights = [each for each in network.graph.initializer if each.name.startswith(("model.backbone.", "model.extras."))]
    return sum(onnx.numpy_helper.to_array(each).nbytes for each in weights)


def test_int8_of_a_raw_network(run_checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(export, "NUM_CALIBRATION", 4)
    assert export.main([str(run_checkpoint), "--int8", "--heads", "raw", "--score", "0.35", "--max-loss", "1"]) == 0
    shown = capsys.readouterr().out
    path = run_checkpoint.with_suffix(".raw.int8.onnx")
    assert f"written: {path}" in shown
    settings = json.loads(path.with_suffix(".json").read_text("utf-8"))
    assert settings["int8"]["float32"] > 0.9  # it is graded on what it finds
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert kinds["QuantizeLinear"] > 20
    assert not {"NonMaxSuppression", "Loop", "If", "Shape"} & set(kinds)


def test_int8_predictions_are_close(network, shapes_root):
    photos = [read_photo(path) for path in sorted((shapes_root / "shapes/JPEGImages").iterdir())[:10]]
    graphs = (network, quantise.quantise(network, [photo[None] for photo in photos[4:]], with_heads=True))
    found = []
    for graph in graphs:
        session = onnxruntime.InferenceSession(graph.SerializeToString())
        every = [session.run(["all_boxes", "all_scores"], {"images": photo[None]}) for photo in photos[:4]]
        found.append([np.concatenate([values.ravel() for values in column]) for column in zip(*every, strict=True)])
    (boxes, scores), (boxes_8, scores_8) = found
    assert np.corrcoef(boxes, boxes_8)[0, 1] > 0.99
    assert np.corrcoef(scores, scores_8)[0, 1] > 0.85  # made-up weights suffer more than trained ones
    assert not np.allclose(scores, scores_8, atol=1e-4)  # eight bits they are


def test_int8_with_a_large_loss_of_map_is_not_written(run_checkpoint, monkeypatch, capsys):
    real = quantise.quantise

    def poor(network, batches, with_heads):
        return real(network, (np.zeros_like(batch) for batch in batches), with_heads)  # calibrated on black photos

    monkeypatch.setattr(quantise, "quantise", poor)
    monkeypatch.setattr(export, "NUM_CALIBRATION", 6)
    output = run_checkpoint.with_name("poor.onnx")
    assert export.main([str(run_checkpoint), "--int8", "--output", str(output)]) == 1
    shown = capsys.readouterr()
    assert "int8, heads in float32: mAP" in shown.out  # both were tried
    assert re.search(r"error: int8 loses [\d.]+ points of mAP, more than 1: not written; see --max-loss", shown.err)
    assert not output.exists()


@pytest.mark.parametrize(
    "options, said",
    [
        (["--int8", "--photos", "."], "--int8 does not go with --photos .: mAP needs the run's own photos"),
        (["--int8", "--format", "weights"], "--int8 does not go with --format weights"),
        (["--max-loss", "0.1"], "--max-loss needs --int8"),
        (["--heads", "raw", "--format", "weights"], "--heads raw does not go with --format weights: it writes ONNX"),
        (["--batch", "4"], "--batch needs --heads raw"),
        (["--input", "uint8"], "--input needs --heads raw"),
        (["--conf", "logits"], "--conf needs --heads raw"),
        (["--score", "auto"], "the checkpoint has no thresholds for --score auto; give a number"),
        (["--int8"], "the run's photos cannot be read"),
        (["--int8"], "--int8 needs the run's training and validation photos"),
        ([], "name a folder with --photos"),
        (["--format", "weights", "--output", "x.onnx"], "must end in .pt"),
        (["--output", "/nowhere/x.onnx"], "/nowhere/x.onnx: no such folder"),
    ],
)
def test_conflicting_and_missing_options(checkpoint, capsys, options, said):
    assert export.main([str(checkpoint), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_check_without_detections_fails(checkpoint, network, shapes_root, tmp_path, capsys):
    words = [str(checkpoint), "--output", str(tmp_path / "a.onnx"), "--photos", str(shapes_root / "shapes/JPEGImages")]
    assert export.main([*words, "--score", "1"]) == 1
    assert "error: not checked: no detections with scores from 1 in 16 photos" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--top-k=0", "--score=40", "--nms=-0.1"])
def test_options_have_bounds(checkpoint, capsys, option):
    with pytest.raises(SystemExit, match=r"^2$"):
        export.main([str(checkpoint), option])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: argument {option.partition('=')[0]}: expected ")


def test_the_example_prints_its_usage():
    for words in ([], ["none.onnx"]):
        done = subprocess.run([sys.executable, "scripts/run_onnx.py", *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr == "usage: python scripts/run_onnx.py FILE.onnx PHOTO...\n"


def test_the_example_ends_without_a_traceback(exported, shapes_root):
    """On Ctrl-C, and on a closed pipe, as with head."""
    photos = [str(path) for path in sorted((shapes_root / "shapes/JPEGImages").iterdir())] * 500
    for number in (signal.SIGINT, signal.SIGPIPE):
        words = [sys.executable, "-u", "scripts/run_onnx.py", str(exported[0]), *photos]
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stderr
            assert process.stdout.read(1)
            if number == signal.SIGINT:
                process.send_signal(number)
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == -number
