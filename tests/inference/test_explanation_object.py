import numpy as np
import torch

from deformable_detr.inference import explanation_object
from deformable_detr.inference.drawing import class_color
from deformable_detr.inference.explanation_object import around, draw_boxes, draw_names
from deformable_detr.inference.explanation_view import view_of
from deformable_detr.inference.missed import Missed
from tests.explained import BEFORE, BOX, by_hand, looking_from, white

MISSED = Missed(place=(250.0, 30.0), distance_px=50.0, score=0.1, threshold=0.5, overlap=0.0, overlapped=None)


def names_of(explanation, monkeypatch):
    written = []
    monkeypatch.setattr(explanation_object, "draw_label", lambda view, x, y, text, *_, **__: written.append(text))
    draw_names(view_of(white(), BOX), explanation, 0, with_path=True)
    return written


def test_the_view_is_around_the_object_and_the_place():
    assert around(by_hand(), 0) == list(BOX)
    assert around(by_hand(missed=MISSED), 0) == [100.0, 30.0, 250.0, 120.0]
    beyond = by_hand(detections=by_hand().detections[:1])
    beyond.detections.boxes_xyxy[0] = torch.tensor([-20.0, 60.0, 350.0, 120.0])
    assert around(beyond, 0) == [0.0, 60.0, 300.0, 120.0]


def test_the_way_of_the_box(monkeypatch):
    """b1 is half a pixel from the final box."""
    assert names_of(by_hand(), monkeypatch) == ["dog 0.75", "b0", "b1-b2"]
    far = by_hand(path_xyxy=torch.tensor([[[120.0, 60.0, 200.0, 120.0]], [BOX]]))
    assert names_of(far, monkeypatch) == ["dog 0.75", "b0", "b1", "b2"]


def test_a_reference_that_is_a_point(monkeypatch):
    point = [150.0, 90.0, 150.0, 90.0]
    assert names_of(by_hand(layers=looking_from(point, BEFORE[1])), monkeypatch) == ["dog 0.75", "b1-b2", "b0"]
    assert names_of(by_hand(layers=looking_from(point, point)), monkeypatch) == ["dog 0.75", "b0"]
    assert names_of(by_hand(layers=()), monkeypatch) == ["dog 0.75"]


def test_a_place_that_was_asked_for(monkeypatch):
    assert names_of(by_hand(missed=MISSED), monkeypatch)[-1] == "asked for"


def test_the_final_box_is_on_top():
    view = view_of(white(), BOX)
    draw_boxes(view, by_hand(), 0, with_path=True)
    pixels = np.asarray(view.picture)
    left, top, right, bottom = (round(value) for value in view.box(BOX))
    row = (top + bottom) // 2
    assert (pixels[row, [left + 1, right - 1]] == class_color(1)).all()
    first = round(view.place(80.0, 0.0)[0])
    assert (pixels[top:bottom, first - 2 : first + 3].max(2).min(1) < 60).any()  # b0, dashed
    plain = view_of(white(), BOX)
    draw_boxes(plain, by_hand(), 0)
    assert (np.asarray(plain.picture)[:, first - 2 : first + 3] == 255).all()
