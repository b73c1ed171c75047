import html
import re
import shutil
import subprocess
from dataclasses import replace

import cv2
import matplotlib as mpl
import numpy as np
import pytest

from ssd.boxes import voc_to_edges
from ssd.evaluation.curves import curve_plots
from ssd.evaluation.error_kinds import error_kinds
from ssd.evaluation.evaluate import Evaluation
from ssd.evaluation.label_faults import label_faults
from ssd.evaluation.metrics import METRICS
from ssd.evaluation.plots import PLOT_STYLE, ap_plot, confusion_plot, pr_plot, score_plot
from ssd.evaluation.report import ReportInput, match_summary, pair, render, write_report
from ssd.evaluation.voc_eval import area_ap, voc_eval
from ssd.inference.predict import Detections
from tests.helpers.detections import found, truth

CLASSES = ("cat", "dog")
EDGES = (0, 16, 32, 64, 301)
A, B, FAR = (1, 1, 10, 10), (21, 21, 30, 30), (51, 51, 60, 60)


def test_confusion_by_hand():
    detections = [
        found((*A, 0, 0.9), (*B, 0, 0.8), (*FAR, 1, 0.7)),  # a hit, a dog detected as a cat, and a false dog
        found((*A, 1, 0.9), (*A, 1, 0.4)),  # matches a difficult object; score too low
        found(),
    ]
    objects = [truth((*A, 0, False), (*B, 1, False)), truth((*A, 1, True), (*B, 0, False)), truth((*FAR, 1, False))]
    matches = match_summary(detections, objects, 2, 0.5)
    assert matches.confusion.tolist() == [[1, 0, 1], [1, 0, 1], [0, 1, 0]]
    assert matches.missed.tolist() == [1, 1, 1]
    assert matches.false.tolist() == [2, 0, 0]


def test_pairs_take_the_largest_overlap_first():
    overlap = np.array([[0.6, 0.9], [0.7, 0.8], [0.4, 0.1]])
    assert pair(overlap).tolist() == [1, 0, -1]
    assert pair(np.zeros((2, 0))).tolist() == [-1, -1]


def evaluation_of(classes: tuple[str, ...], detections: list[dict], objects: list[dict]) -> Evaluation:
    result = voc_eval(detections, objects, len(classes), use_07_metric=False)
    errors = error_kinds(detections, objects, len(classes), area_ap)
    in_edges = [Detections(voc_to_edges(each["boxes"]), each["labels"], each["scores"]) for each in detections]
    return Evaluation(classes, METRICS["voc10"], result, in_edges, 1.5, 1.0, 2.0, errors)


@pytest.fixture
def report_input():
    detections = [found((*A, 0, 0.9), (*FAR, 0, 0.6)), found((*B, 1, 0.8))]
    objects = [truth((*A, 0, False)), truth((*B, 1, False), (*FAR, 1, False))]
    records = [
        {"kind": "train", "epoch": 1, "iteration": 10, "loss": 3.0, "loss_l": 1.0, "loss_c": 2.0, "images_per_s": 5.0},
        {"kind": "eval", "epoch": 1, "iteration": 10, "map": 0.5, "ap": {}},
        {"kind": "eval", "epoch": 1, "iteration": 20, "map": None, "ap": {}, "loss": 3.5, "loss_l": 1.5, "loss_c": 2.0},
    ]
    evaluation = evaluation_of(CLASSES, detections, objects)
    names = ["a<b>.jpg", "b.jpg"]
    image = np.full((80, 100, 3), 90, np.uint8)
    facts, sizes = {"run": "runs/x"}, np.array([[100, 80]] * 2)
    title, faults = "SSD300: mine & yours", label_faults(evaluation.errors, 2)
    return ReportInput(
        title, evaluation, objects, names, lambda _: image, records, {"seed": 0}, facts, sizes, 300, EDGES, faults
    )


def test_precision_and_recall_by_score(report_input):
    thresholds, precision, recall, f1 = report_input.evaluation.score_curves()
    at = {round(float(value), 2): i for i, value in enumerate(thresholds)}
    # From 0.5 on: cats 1 of 2 right, recall 1; dogs 1 of 1 right, recall 1/2.
    assert precision[at[0.5]] == pytest.approx((0.5 + 1) / 2)
    assert recall[at[0.5]] == pytest.approx((1 + 0.5) / 2)
    assert f1[at[0.5]] == pytest.approx((2 / 3 + 2 / 3) / 2)
    # From 0.85 on: the cat alone.
    assert recall[at[0.85]] == pytest.approx(0.5)
    assert precision[at[1.0]] == 1
    assert recall[at[1.0]] == 0
    assert report_input.evaluation.best_score() == (pytest.approx(0.61), pytest.approx((1 + 2 / 3) / 2))
    # The best F1 of cats lies above the false one, that of dogs anywhere up to the only one.
    assert report_input.evaluation.class_scores() == {"cat": pytest.approx((0.61 + 0.9) / 2), "dog": pytest.approx(0.8 / 2)}


def test_the_report_is_self_contained(report_input):
    text = render(report_input)
    assert not re.search(r"(src|href)=['\"]?(?!data:|#)[^'\"#]", text)
    assert "mine &amp; yours" in text
    assert "Detections with scores from 0.61" in text  # so that a.jpg's false one, of score 0.6, does not count
    assert "a&lt;b&gt;.jpg: 0 missed, 0 false" in text
    assert "b.jpg: 1 missed, 0 false" in text
    assert text.count("<svg") == 6
    assert "mAP@0.5 (VOC10 area)" in text
    assert "<tr><td>missed<td>0.250<td" in text  # a dog of two
    assert "<tr><td>32 to 64<td>3<td>67%<td>0.750" in text  # 10 pixels of 100 × 80 are 33.5 of the network's
    assert "<figcaption>1. b.jpg: dog: nothing there?" in text


def test_overfitting_is_reported_below_the_curves(report_input):
    assert "overfitting" not in render(report_input)
    losses = [{"kind": "train", "iteration": i, "loss": 9.0 - i, "loss_l": 1.0, "loss_c": 8.0 - i} for i in range(1, 6)]
    rising = [{"kind": "eval", "iteration": i, "map": 0.5, "loss": i, "loss_l": 0, "loss_c": i} for i in range(2, 6)]
    text = render(replace(report_input, records=losses + rising))
    assert text.index("<h2>Training</h2>") < text.index("The network is overfitting") < text.index("<h2>Classes</h2>")


def test_no_detections_and_no_records(report_input):
    empty = [found()] * 2
    evaluation = evaluation_of(CLASSES, empty, report_input.ground_truth)
    bare = replace(report_input, evaluation=evaluation, faults=label_faults(evaluation.errors, 2), records=[])
    text = render(bare)
    assert "0.000 at score 0.50" in text
    assert "No records." in text


def test_unusual_class_names_and_photo_shapes(report_input, recwarn):
    names = ("US$5_$x^", "_猫", "a & <b>", "हिन्दी")
    photos = [np.full(shape, 90, np.uint8) for shape in ((3, 3000, 3), (3000, 3, 3))]
    detections = [found((1, 1, 3, 3, i, 0.9), (1, 1, 2, 3, i + 2, 0.6)) for i in range(2)]
    objects = [truth((1, 1, 3, 3, i, False), (1, 1, 2, 3, i + 2, False)) for i in range(2)]
    evaluation = evaluation_of(names, detections, objects)
    changes = {"evaluation": evaluation, "ground_truth": objects, "names": ["a", "b"], "image": photos.__getitem__}
    text = render(replace(report_input, **changes))
    for name in names:
        assert text.count(f">{html.escape(name)}<") == 5  # table, APs, legend, both axes of the confusion
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize(
    "names", [CLASSES, ("of twenty-eight letters each", "i"), tuple(f"a kind of number {i}" for i in range(30))]
)
def test_all_text_lies_within_its_figure(report_input, names):
    detections = [found((*A, 0, 0.9), (*FAR, 0, 0.6)), found((*B, 1, 0.8))]
    evaluation = evaluation_of(names, detections, list(report_input.ground_truth))
    confusion = match_summary(detections, report_input.ground_truth, len(names), 0.5).confusion
    records = [{**record, "lr": 0.001, "grad_norm": 0.00015 * record["iteration"]} for record in report_input.records]
    with mpl.rc_context(PLOT_STYLE):
        figures = [ap_plot(evaluation), pr_plot(evaluation), score_plot(evaluation)]
        figures += [confusion_plot(confusion, names), *curve_plots(records, "mAP")]
        for figure in figures:
            width, height = figure.get_size_inches()
            written = figure.get_tightbbox()
            assert 0 <= written.x0 < written.x1 <= width
            assert 0 <= written.y0 < written.y1 <= height


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_fits_in_a_browser(report_input, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    write_report(tmp_path / "report.html", report_input)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2400"]
    picture = tmp_path / "report.png"
    words = [browser, *options, f"--screenshot={picture}", f"file://{tmp_path / 'report.html'}"]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    image = cv2.imread(str(picture))
    assert image.shape[1] == width
    # Nothing reaches beyond the page, and there is something on all of its upper part.
    assert (image[:, -8:] == 255).all()
    rows = (image.min(axis=(1, 2)) < 200)[:1200]
    assert rows.mean() > 0.3
