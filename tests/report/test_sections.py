from dataclasses import replace

import pytest

from deformable_detr.data.statistics import statistics_of
from deformable_detr.evaluation.analysis import analyse
from deformable_detr.evaluation.coco_metrics import coco_metrics
from deformable_detr.report import sections
from deformable_detr.report.history import history_of
from deformable_detr.report.looks import Look, Looks
from deformable_detr.report.mistakes import Mistake, Mistakes
from tests.evaluation.test_analysis import evaluation
from tests.report.cases import dataset, detections, random_case, sample
from tests.report.test_history import rows
from tests.report.test_page import Tree


def words(section):
    return [word for word in Tree(section.content).words if word.strip()]


@pytest.mark.parametrize("num_classes", [1, 3, 12, 13, 80])
def test_any_number_of_classes(num_classes):
    found, data = random_case(0, num_classes=num_classes, num_images=12)
    report = evaluation(found, data)
    analysis = analyse(report)
    for section in (
        sections.accuracy(report, analysis),
        sections.thresholds(analysis),
        sections.confusion(analysis, list(report.metrics.per_class)),
        sections.errors(analysis),
        sections.calibration(analysis),
        sections.data({"training": statistics_of(data), "validation": statistics_of(data)}, "itself"),
    ):
        assert "nan" not in words(section), section.title
        assert len(section.content) < 700_000
    text = sections.confusion(analysis, list(report.metrics.per_class)).content
    assert ("<svg" in text) == (num_classes > 12)


def test_the_figures_are_those_of_the_analysis():
    found, data = random_case(2)
    report = evaluation(found, data)
    analysis = analyse(report)
    shown = words(sections.accuracy(report, analysis))
    for name, own in report.metrics.per_class.items():
        place = shown.index(name)
        assert shown[place + 1 : place + 3] == [f"{100 * own.ap:.1f}", f"{100 * own.ap50:.1f}"]
    shown = words(sections.thresholds(analysis))
    assert f"ddetr predict best.safetensors PHOTOS --threshold {analysis.threshold:.2f}" in shown
    one = analysis.classes[1]
    place = shown.index(one.name)
    assert shown[place + 1 : place + 3] == [f"{one.f1.max():.2f}", f"{one.threshold:.2f}"]
    shown = words(sections.confusion(analysis, list(report.metrics.per_class)))
    assert {str(count) for count in analysis.confusion.ravel() if count} <= set(shown)


def test_numbers_that_are_not_coco_s_are_apart_and_called_so():
    found, data = random_case(2)
    report = evaluation(found, data)
    own = coco_metrics(found, data, max_detections=300)
    more = replace(report, metrics_at_n=own, max_detections=300)
    usual, both = (words(sections.accuracy(one, analyse(one))) for one in (report, more))
    assert both[: len(usual)] == usual
    assert not any("Not COCO's" in word for word in usual)
    rest = both[len(usual) :]
    assert "params.maxDets = [1, 10, 300] in pycocotools" in rest[0]
    assert "Not COCO's: 300 detections of an image, percent" in rest
    place = rest.index("AR 300")
    assert rest[place + 1 : place + 3] == [f"{100 * own.ar_100:.1f}", "300 detections"]
    assert "AR 100" not in rest
    assert set(own.per_class) <= set(rest)


def test_what_is_confused_most_is_listed_first():
    # Three dogs and a cat taken for emus, one emu for a dog.
    truth = [sample([[10, 10, 60, 60]], [c], image_id=n, first_id=n) for n, c in enumerate([1, 1, 1, 0, 2, 2], start=1)]
    found = [detections([[10, 10, 60, 60]], [0.9], [c]) for c in (2, 2, 2, 2, 1, 2)]
    section = sections.confusion(analyse(evaluation(found, dataset(*truth))), ["cat", "dog", "emu"])
    shown = words(section)
    after = shown[shown.index("of the class") + 1 :]
    assert after == ["dog", "emu", "3", "100 %", "cat", "emu", "1", "100 %", "emu", "dog", "1", "50 %"]


def test_without_objects_there_is_nothing_to_show():
    data = dataset(sample([], []))
    report = evaluation([detections([[0, 0, 9, 9]], [0.5], [0])], data)
    analysis = analyse(report)
    assert sections.thresholds(analysis).content == ""
    assert sections.errors(analysis).content == ""
    assert sections.calibration(analysis).content == ""
    assert "-" in words(sections.accuracy(report, analysis))
    none = analyse(evaluation([detections([], [], [])], data))
    assert sections.confusion(none, ["cat", "dog", "emu"]).content == ""
    assert sections.data({}, "").content == ""


def test_the_course_of_a_training():
    content = sections.training(history_of(rows())).content
    titles = ("Training loss", "AP on the validation images", "AP of each class", "last decoder layer (decoder.1)")
    for title in (*titles, "proposals", "Learning rate"):
        assert title in content
    assert sections.training(history_of([])).content == ""
    with_more = rows()
    for row in with_more:
        if "train" in row:
            row["train"] |= {"one_to_many/class": 3.0}
    assert "one-to-many queries, all layers" in sections.training(history_of(with_more)).content


def test_mistakes_that_cannot_be_shown_are_said():
    one = Mistake("cat 0.9", "nothing is there", "a.jpg", "data:image/jpeg;base64,AA==", (30, 20))
    shown = words(sections.mistakes(Mistakes([one], [], ["b.jpg: gone"]), 0.42))
    assert {"Found, but not there", "cat 0.9", "Not shown: b.jpg: gone"} <= set(shown)
    assert "There, but not found" not in shown
    assert sections.mistakes(Mistakes([], [], []), 0.5).content == ""


def test_settings_and_facts():
    shown = words(sections.configuration({"model.dropout": 0.1, "mean": [1, 2]}, [("torch", "2.11")]))
    assert {"model.dropout", "0.1", "1, 2", "2.11", "2 settings"} <= set(shown)
    assert words(sections.at_a_glance([("AP, %", "55.5")])) == ["AP, %", "55.5"]


def test_looks_are_pictures_with_words_or_a_reason():
    one = Look("Best hit: cat", "cat 0.90: 3 of 64 points", "a.jpg", "data:image/png;base64,AAAA", (360, 240))
    section = sections.looks(Looks([one], ""))
    assert (section.anchor, section.title) == ("looks", "Where it looked")
    assert 'alt="Best hit: cat: cat 0.90: 3 of 64 points"' in section.content
    assert "ddetr explain" in section.content
    reason = sections.looks(Looks([], "Not shown: <b>.")).content
    assert reason == "<p>Not shown: &lt;b&gt;.</p>"
    assert sections.looks(Looks([], "")).content == ""
