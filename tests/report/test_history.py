import math

import pytest

from deformable_detr.report.history import history_of


def rows(num_epochs=4):
    lines = [{"kind": "note"}, {"kind": "step", "epoch": "1"}]
    for epoch in range(1, num_epochs + 1):
        for step in range(5 * epoch - 4, 5 * epoch + 1):
            lines.append({"kind": "step", "epoch": epoch, "step": step, "loss": 9 / step, "lr": 1e-4})
        train = {"loss": 9 / epoch, "decoder.0/class": 5.0, "decoder.1/class": 1 / epoch, "proposals/giou": 0.5}
        record = {"kind": "epoch", "epoch": epoch, "step": 5 * epoch, "train": train, "train_seconds": 10.0}
        if epoch % 2 == 0:
            record["val"] = {"ap": 0.25, "ap50": 0.2 * epoch, "ap75": -1.0}
            record["val_per_class"] = {"cat": {"ap": 0.1}, "été": {"ap": -1.0}}
            record["val_seconds"] = 2.0
        lines.append(record)
    return lines


def test_lines_of_a_run():
    history = history_of(rows())
    assert (len(history.steps), len(history.epochs), len(history.evaluated)) == (20, 4, 2)
    assert history.seconds == 44
    assert history.best()["epoch"] == 4  # of equals the latest
    assert history.best("ap50")["epoch"] == history.best("cat/ap")["epoch"] == 4
    history.epochs[1]["val"]["ap50"], history.epochs[1]["val_per_class"]["cat"]["ap"] = 0.9, 0.2
    assert history.best("ap50")["epoch"] == history.best("cat/ap")["epoch"] == 2  # as best.safetensors
    assert history.best("ap")["epoch"] == history.best("dog/ap")["epoch"] == 4
    assert (
        history.best("ap50@queries")["epoch"] == history.best("cat/ap@queries")["epoch"] == 2
    )  # COCO's, without others
    for row, ap in ((history.epochs[1], 0.3), (history.epochs[3], 0.6)):
        row["val_at_n"], row["val_at_n_per_class"] = {"max_detections": 500, "ap": ap, "ap50": ap}, {"cat": {"ap": ap}}
    assert history.best("ap50@queries")["epoch"] == history.best("cat/ap@queries")["epoch"] == 4
    assert history.best("ap50")["epoch"] == history.best("cat/ap")["epoch"] == 2
    history.epochs[1]["val"]["ap50"] = 0.4
    averages, steps = history.loss()
    assert (averages.xs, averages.ys) == ([1, 2, 3, 4], [9, 4.5, 3, 2.25])
    assert steps.xs[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.2])
    assert steps.faint
    ap50, ap, ap75, own = history.precision()
    assert (own.label, own.xs, own.ys) == ("AP with 500 detections", [2, 4], [30, 60])
    assert (ap50.label, ap50.xs, ap50.ys) == ("AP50", [2, 4], [pytest.approx(40), pytest.approx(80)])
    assert ap.ys == [25, 25]
    assert all(math.isnan(y) for y in ap75.ys)
    assert [one.label for one in history.class_precision()] == ["cat", "été"]
    assert history.learning_rate()[0].ys == [1e-4] * 20


def test_recall_of_as_many_detections_as_queries_chooses_the_epoch():
    """The records call it after that number, and the setting calls it ar_100@queries."""
    lines = rows(6)
    lines[-1]["val"]["ap50"] = 1.0
    history = history_of(lines)
    for row, recall, usual in zip(history.evaluated, (0.5, 0.9, 0.3), (0.1, 0.2, 0.4), strict=True):
        row["val"]["ar_100"] = usual
        row["val_at_n"] = {"max_detections": 300, "ap": 0.1, "ar_300": recall}
    assert history.best("ar_100@queries")["epoch"] == 4
    assert history.best("ar_100")["epoch"] == 6
    for row in history.evaluated:
        del row["val_at_n"]
    assert history.best("ar_100@queries")["epoch"] == 6  # COCO's, without others


def step(number, epoch):
    return {"kind": "step", "epoch": epoch, "step": number, "loss": 1.0, "lr": 1e-3}


def end(number, epoch):
    return {"kind": "epoch", "epoch": epoch, "step": number, "train": {"loss": 1.0}}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # Epochs of 25 steps, every 10th logged: the last of epoch 1 that is logged is not its end.
        (
            [step(10, 1), step(20, 1), end(25, 1), step(30, 2), step(40, 2), step(50, 2), end(50, 2), step(60, 3)],
            [0.4, 0.8, 1.2, 1.6, 2.0, 2.4],
        ),
        # Fewer steps in an epoch than between two that are logged.
        ([end(4, 1), end(8, 2), step(10, 3), end(12, 3), end(16, 4), step(20, 5)], [2.5, 5.0]),
        # Resumed after two epochs of 5 steps with data that make 7; then with data that make 3.
        ([step(4, 1), end(5, 1), end(10, 2), step(16, 3), step(21, 3), end(21, 3)], [0.8, 2 + 2 / 7, 3.0]),
        ([step(4, 1), end(5, 1), end(10, 2), step(8, 3), end(9, 3)], [0.8, 2 + 2 / 3]),
        # Epochs under way: the first, one as long as before, a longer one, and one that is shorter by now.
        ([step(10, 1), step(40, 1)], [0.25, 1.0]),
        ([end(5, 1), end(10, 2), step(18, 3)], [3.0]),
        ([end(5, 1), end(10, 2), step(8, 3)], [2.0]),
        # A step that had no usable image is not counted: still no step stands before its epoch.
        ([step(3, 1), end(3, 1), step(4, 2), end(8, 2)], [1.0, 1.0]),
        # Lines of a part of the run are lost.
        ([step(11, 2), step(22, 3), end(30, 3)], [1.1, 2.2]),
        ([{**step(1, 0), "step": 0}, step(5, 1)], [1.0]),
    ],
)
def test_steps_stand_at_fractions_of_their_epochs(lines, expected):
    history = history_of(lines)
    assert history.loss()[1].xs == pytest.approx(expected)
    assert history.learning_rate()[0].xs == pytest.approx(expected)


def test_terms_are_those_of_the_last_decoder_layer_and_the_proposals():
    terms = history_of(rows()).terms()
    assert {stage: [one.label for one in series] for stage, series in terms.items()} == {
        "decoder.1": ["class"],
        "proposals": ["giou"],
    }
    assert terms["decoder.1"][0].ys == [1, 0.5, pytest.approx(1 / 3), 0.25]


def test_an_epoch_that_has_only_begun_and_no_run_at_all():
    history = history_of([row for row in rows(2) if row["kind"] == "step"][:7])
    assert history.best() is None
    assert history.terms() == {}
    assert history.loss()[0].ys == []
    assert history_of([]).learning_rate()[0].xs == []
