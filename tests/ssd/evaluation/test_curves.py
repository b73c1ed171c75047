import numpy as np
import pytest

from ssd.evaluation.curves import curve_plots, over_fitting, series, smoothed, top_of


def train(iteration: int, loss: float, **more: float | None) -> dict[str, object]:
    return {"kind": "train", "iteration": iteration, "loss": loss, "loss_l": loss / 4, "loss_c": loss * 3 / 4, **more}


def evaluation(iteration: int, loss: float | None) -> dict[str, object]:
    return {"kind": "eval", "iteration": iteration, "map": 0.5, "ap": {}, "loss": loss, "loss_l": loss, "loss_c": loss}


def run(training: list[float], validation: list[float]) -> list[dict[str, object]]:
    """Return training records every 10 iterations, with an evaluation after every second one."""
    records = [train(10 * i, loss, lr=0.1, grad_norm=2.0) for i, loss in enumerate(training, start=1)]
    return records + [evaluation(20 * i, loss) for i, loss in enumerate(validation, start=1)]


@pytest.mark.parametrize("count", [1, 49, 120, 1000])
def test_smoothing_is_a_moving_average(count):
    values = np.random.default_rng(0).normal(size=count)
    half = count // 50
    expected = [values[i - min(half, i) : i + min(half, i) + 1].mean() for i in range(count)]
    np.testing.assert_allclose(smoothed(values), expected, atol=1e-12)


def test_records_without_the_value_are_skipped():
    records = [train(10, 3.0), train(20, 2.0, grad_norm=None), train(30, 1.0, grad_norm=7.0), evaluation(30, None)]
    norms = series(records, "train", "grad_norm")
    assert norms is not None
    assert (norms.at.tolist(), norms.values.tolist()) == ([30], [7])
    assert series(records, "eval", "loss") is None


def test_all_panels_share_their_iterations():
    records = run([4, 3, 2, 1], [5, 4])
    together, parts = curve_plots(records, "mAP@0.5 (VOC10 area)")
    assert [axes.get_title() for axes in together.axes] == ["loss", "mAP@0.5 (VOC10 area)", "learning rate"]
    assert [axes.get_title() for axes in parts.axes] == ["localisation loss", "classification loss", "gradient norm"]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in together.axes[0].lines}
    assert drawn["training, smoothed"] == [[10, 4], [20, 3], [30, 2], [40, 1]]
    assert drawn["validation"] == [[20, 5], [40, 4]]
    assert [axes.get_xlim() for axes in together.axes] == [pytest.approx((0, 40.8))] * 3


def test_an_old_run_has_fewer_curves(recwarn):
    records = [train(10, 2.0), {"kind": "eval", "iteration": 10, "map": None, "ap": {}}]
    titles = [[axes.get_title() for axes in figure.axes] for figure in curve_plots(records, "mAP")]
    assert titles == [["loss"], ["localisation loss", "classification loss"]]
    assert over_fitting(records) == ""
    assert curve_plots([], "mAP") == []
    for figure in curve_plots([train(10, 0.0, lr=0.0, grad_norm=0.0), evaluation(10, 0.0)], "mAP"):
        figure.canvas.draw()
    assert not [str(warning.message) for warning in recwarn]


def test_a_loss_plot_shows_most_values_and_a_final_rise():
    falling = [50.0, *np.linspace(3, 2, 99)]
    records = run(falling, [2.5, 2.4, 4.0])
    losses = series(records, "train", "loss"), series(records, "eval", "loss")
    top = top_of(*losses)
    assert top is not None
    assert 4 < top < 5
    assert top_of(losses[0], None) < 4
    assert top_of(None, losses[1]) == pytest.approx(4.4)


def test_overfitting_is_reported_with_numbers():
    # Evaluations after iterations 20, 40 and so on; the train record of each is that of the ten iterations before it.
    text = over_fitting(run([9, 8, 7, 6, 5, 4, 3, 2, 1, 0.5], [3, 2, 2.25, 2.5, 2.75]))
    assert text.startswith(
        "The validation loss rose in each of the last 3 evaluations, from 2.000 at iteration 40 to 2.750 at 100, while the "
        "training loss fell from 6.000 to 0.500. The network is overfitting"
    )


@pytest.mark.parametrize(
    "training, validation",
    [
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0.5], [3, 2, 2.5, 2.75, 2.75]),  # not in the last one
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0.5], [3, 3, 2, 2.5, 2.75]),  # twice alone
        ([9, 8, 7, 6, 6, 6, 6, 6, 6, 6], [3, 2, 2.5, 2.75, 3]),  # training has not become better: it is no overfitting
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0.5], [3, 2.5, 2, 1.5, 1]),
        ([], [3, 2, 2.5, 2.75, 3]),
        ([9, 8], []),
    ],
)
def test_no_false_warning_of_overfitting(training, validation):
    assert over_fitting(run(training, validation)) == ""
