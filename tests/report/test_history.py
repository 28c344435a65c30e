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
    assert (len(history.steps), len(history.epochs), len(history.judged)) == (20, 4, 2)
    assert history.seconds == 44
    assert history.best()["epoch"] == 4  # of equals the latest
    assert history.best("ap50")["epoch"] == history.best("cat/ap")["epoch"] == 4
    history.epochs[1]["val"]["ap50"], history.epochs[1]["val_per_class"]["cat"]["ap"] = 0.9, 0.2
    assert history.best("ap50")["epoch"] == history.best("cat/ap")["epoch"] == 2  # as best.safetensors
    assert history.best("ap")["epoch"] == history.best("dog/ap")["epoch"] == 4
    history.epochs[1]["val"]["ap50"] = 0.4
    averages, steps = history.loss()
    assert (averages.xs, averages.ys) == ([1, 2, 3, 4], [9, 4.5, 3, 2.25])
    assert steps.xs[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.2])
    assert steps.faint
    ap50, ap, ap75 = history.precision()
    assert (ap50.label, ap50.xs, ap50.ys) == ("AP50", [2, 4], [pytest.approx(40), pytest.approx(80)])
    assert ap.ys == [25, 25]
    assert all(math.isnan(y) for y in ap75.ys)
    assert [one.label for one in history.class_precision()] == ["cat", "été"]
    assert history.learning_rate()[0].ys == [1e-4] * 20


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
