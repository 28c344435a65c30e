import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

import deformable_detr
from deformable_detr.core.detections import Detections
from deformable_detr.core.devices import has_bfloat16
from deformable_detr.core.errors import BackendError, CheckpointError, ConfigError, DataError
from deformable_detr.inference.detector import Detector, _state_of
from deformable_detr.inference.onednn import EVERYTHING
from deformable_detr.inference.prepare import prepare
from deformable_detr.inference.tta import TTA
from deformable_detr.models import build
from deformable_detr.weights.checkpoint import Checkpoint, save


def picture(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PARTS = ("boxes_xyxy", "scores", "class_ids", "query_ids")


def same(one, other):
    # Scores of an untrained model are close together: match boxes by score order and compare all of it.
    pairs = [(getattr(one, part).float(), getattr(other, part).float()) for part in PARTS]
    return len(one) == len(other) and all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


def identical(one, other):
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in PARTS)


def test_detections_are_in_pixels_of_each_image_best_first(detector):
    found = detector.predict([picture(71, 40, 0), picture(40, 90, 1)], threshold=0.0)
    assert [len(one.scores) for one in found] == [33, 33]  # 11 queries of 3 classes
    for one, (width, height) in zip(found, [(71, 40), (40, 90)], strict=True):
        assert (one.scores.diff() <= 0).all()
        centres = (one.boxes_xyxy[:, :2] + one.boxes_xyxy[:, 2:]) / 2
        assert ((centres >= 0) & (centres <= torch.tensor([width, height]))).all()
        assert set(one.class_ids.tolist()) <= {0, 1, 2}


def test_detections_know_names_categories_and_queries(detector):
    detector = Detector(detector.model, ("disc", "square", "star"), (9, 4, 6), detector.preprocessing, device="cpu")
    found = detector.predict(picture(71, 40, 0), threshold=0.0)
    assert (found.classes, found.category_ids) == (detector.classes, detector.category_ids)
    assert [one.class_name for one in found] == [detector.classes[i] for i in found.class_ids.tolist()]
    assert [one["category_id"] for one in found.to_coco(5)] == [(9, 4, 6)[i] for i in found.class_ids.tolist()]
    # 11 queries of 3 classes, all of them kept: each query has found three things, in one place.
    assert sorted(found.query_ids.tolist()) == sorted([*range(11)] * 3)
    for query in range(11):
        assert len({one.box_xyxy for one in found[found.query_ids == query]}) == 1


def test_one_image_gives_detections_and_several_give_a_list(detector, tmp_path):
    image = picture(53, 31, 2)
    image.save(tmp_path / "a.png")
    array, tensor = np.asarray(image), pil_to_tensor(image)
    expected = detector.predict([image], threshold=0.0)[0]
    for one in (tmp_path / "a.png", str(tmp_path / "a.png"), image, array, tensor, tensor / 255, tensor.double() / 255):
        found = detector.predict(one, threshold=0.0)
        assert isinstance(found, Detections)
        assert identical(found, expected)
    gray = np.asarray(image.convert("L"))
    assert isinstance(detector.predict(gray), Detections)  # and not its rows
    for several in ((image, array), iter([image, tmp_path / "a.png"]), {1: tensor, 2: image}.values()):
        found = detector.predict(several, threshold=0.0)
        assert isinstance(found, list)
        assert len(found) == 2
        assert all(same(one, expected) for one in found)
    assert detector.predict(()) == detector.predict(iter([])) == []


@pytest.mark.parametrize("kind", [str, np.asarray, pil_to_tensor])  # all of which could be gone through one by one
def test_predict_each_wants_several(detector, kind):
    with pytest.raises(ValueError, match=r"predict_each takes several images, not a .*; predict takes one"):
        detector.predict_each(kind(picture(53, 31, 2)))


def test_a_batch_of_images_is_a_list(detector):
    arrays = np.stack([np.asarray(picture(53, 31, seed)) for seed in range(2)])
    with pytest.raises(ValueError, match=r"\(2, 31, 53, 3\) in uint8; several images are passed as a list"):
        detector.predict(arrays)
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    with pytest.raises(ValueError, match=r"\(2, 3, 31, 53\) in torch.uint8; several images are passed as a list"):
        detector.predict(tensors)
    found = [detector.predict(list(images), threshold=0.0) for images in (arrays, tensors)]
    assert len(found[0]) == 2
    assert all(identical(one, other) for one, other in zip(*found, strict=True))


def test_the_network_is_in_evaluation_mode_whatever_it_was_in(detector):
    image = picture(53, 31, 2)
    expected = detector.predict(image, threshold=0.0)
    detector.model.train()  # where dropout drops
    assert identical(detector.predict(image, threshold=0.0), expected)
    assert not any(module.training for module in detector.model.modules())


def test_no_part_of_the_network_is_left_in_training_mode(detector):
    image = picture(53, 31, 2)
    expected = detector.predict(image, threshold=0.0)
    detector.model.decoder.train()
    assert identical(detector.predict(image, threshold=0.0), expected)


def test_predictions_that_are_no_numbers_are_no_empty_picture(detector):
    with torch.no_grad():
        for parameter in detector.model.parameters():
            parameter.mul_(1e30)  # finite, all of them
    with pytest.raises(CheckpointError, match="the predictions are no numbers: the weights are damaged or too large"):
        detector.predict(picture(53, 31, 2))


def test_a_batch_needs_an_image(detector):
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        detector.predict([picture(53, 31, 2)], batch_size=0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_no_result_depends_on_the_neighbours(detector, batch_size):
    pictures = [picture(*size, seed) for seed, size in enumerate([(50, 40), (50, 40), (90, 45), (50, 40), (50, 40)])]
    alone = [detector.predict([one], threshold=0.0)[0] for one in pictures]
    together = detector.predict(pictures, threshold=0.0, batch_size=batch_size)
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))


def test_files_pictures_and_arrays_are_the_same(detector, tmp_path):
    image = picture(53, 31, 2)
    image.save(tmp_path / "a.png")
    given = [tmp_path / "a.png", str(tmp_path / "a.png"), image, np.asarray(image)]
    found = detector.predict(given, threshold=0.0)
    assert all(same(found[0], other) for other in found[1:])
    gray = np.asarray(image.convert("L"))
    assert same(*detector.predict([gray, Image.fromarray(gray)], threshold=0.0))


def test_thresholds_and_limits_only_leave_out(detector):
    image = picture(53, 31, 2)
    (everything,) = detector.predict([image], threshold=0.0)
    (few,) = detector.predict([image], threshold=0.0, max_detections=4)
    assert same(few, everything[:4])
    threshold = float(everything.scores[10])
    (good,) = detector.predict([image], threshold=threshold)
    assert len(good.scores) == int((everything.scores >= threshold).sum())
    assert detector.predict([]) == []


def test_no_query_is_cut_off_unless_somebody_asks_for_it(detector, tiny_config):
    image = picture(90, 60, 3)
    config = replace(tiny_config.model, variant="refine", num_queries=140, num_classes=3)
    model = build(config, load_backbone_weights=False)
    many = detector.around(model)
    assert (detector.max_detections, many.max_detections) == (100, 140)
    assert len(many.predict(image, threshold=0.0)) == 140
    assert len(next(many.predict_each([image], threshold=0.0))) == 140
    assert len(many.predict(image, threshold=0.0, max_detections=100)) == 100
    assert len(many.predict(image, threshold=0.0, tta=TTA(scales=(1.0, 1.5), iou=0.99))) == 140
    assert detector.around(torch.nn.Linear(1, 1)).max_detections == 100


def test_predict_each_reads_as_it_goes(detector):
    read = []

    def pictures():
        for number in range(4):
            read.append(number)
            yield picture(40, 30, number)

    results = detector.predict_each(pictures(), threshold=0.0)
    next(results)
    assert len(read) == 2
    assert len(list(results)) == 3


def test_an_image_that_is_not_there_is_named(detector, tmp_path):
    with pytest.raises(DataError, match=r"nope\.jpg"):
        detector.predict([tmp_path / "nope.jpg"])


def test_loading_needs_the_file_alone(detector, tiny_config, tmp_path):
    path = tmp_path / "c.safetensors"
    save(
        Checkpoint(
            weights=detector.model.state_dict(),
            model=replace(tiny_config.model, num_classes=3),
            classes=detector.classes,
            category_ids=detector.category_ids,
            preprocessing=detector.preprocessing,
        ),
        path,
    )
    loaded = deformable_detr.load(path, device="cpu")
    assert isinstance(loaded, Detector)
    assert (loaded.classes, loaded.category_ids) == (detector.classes, detector.category_ids)
    image = picture(53, 31, 2)
    assert same(*(one.predict([image], threshold=0.0)[0] for one in (loaded, detector)))
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        deformable_detr.load(tmp_path / "nope")


def test_on_a_cpu_a_prepared_network_does_the_work_and_follows_the_weights(detector):
    plain = Detector(
        detector.model, detector.classes, detector.category_ids, detector.preprocessing, device="cpu", as_it_is=True
    )
    for _ in range(2):
        found, expected = (one.predict(picture(71, 40, 0), threshold=0.0) for one in (detector, plain))
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, rtol=0, atol=1e-2)
        prepared = detector._network()
        assert prepared is detector._network() is not detector.model
        with torch.no_grad():
            detector.model.decoder.class_heads[-1].bias.add_(1.0)
        assert detector._network() is not prepared
    assert plain._network() is plain.model


def test_bfloat16_where_there_are_instructions_for_it(detector, monkeypatch):
    def make(as_it_is):
        return Detector(
            detector.model,
            detector.classes,
            detector.category_ids,
            detector.preprocessing,
            device="cpu",
            precision="bfloat16",
            as_it_is=as_it_is,
        )

    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    exact = detector.predict(picture(71, 40, 0), threshold=0.0)
    for as_it_is in (False, True):
        rough = make(as_it_is).predict(picture(71, 40, 0), threshold=0.0)
        assert not torch.equal(rough.scores, exact.scores)
        torch.testing.assert_close(rough.scores, exact.scores, rtol=0, atol=0.1)
    assert make(False).around(detector.model).precision == "bfloat16"
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True}, raising=False)
    with pytest.raises(BackendError, match="precision is bfloat16, but this CPU has no instructions for it"):
        make(False)


def test_what_cannot_fit_into_memory_is_refused_before_the_work(detector, monkeypatch):
    large = Detector(
        detector.model,
        detector.classes,
        detector.category_ids,
        replace(detector.preprocessing, short_side=9000, max_side=20_000),
        device="cpu",
    )
    monkeypatch.setattr("deformable_detr.core.memory.free_memory", lambda device: 2**30)
    with pytest.raises(ConfigError, match=r"^15975 x 9000 pixels need more than 13\.4 GiB of memory, and 1\.0 GiB are"):
        large.predict(picture(71, 40, 0))
    with pytest.raises(ConfigError, match=r"^3 images of .* or a smaller batch size"):
        large.predict([picture(71, 40, 0)], batch_size=3)
    assert len(detector.predict(picture(71, 40, 0), threshold=0.0)) == 33


def test_a_detector_that_has_predicted_can_be_copied_and_pickled(detector):
    exact = detector.predict(picture(71, 40, 0), threshold=0.0)
    detector._prepared = (_state_of(detector.model), prepare(detector.model, choice=EVERYTHING))
    for other in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert same(other.predict(picture(71, 40, 0), threshold=0.0), exact)


def test_a_hook_of_later_is_called(detector):
    detector.predict(picture(71, 40, 0))
    called = []
    detector.model.decoder.layers[0].register_forward_hook(lambda *_: called.append(True))
    detector.predict(picture(71, 40, 0))
    assert called == [True]


@pytest.mark.skipif(not has_bfloat16(), reason="this processor has no instructions for bfloat16")
def test_weights_that_do_not_tell_of_changes_have_their_precision(tiny_config):
    image = picture(71, 40, 0)
    with torch.inference_mode():
        model = build(tiny_config.model.with_classes(3))
    arguments = (model, ("a", "b", "c"), (0, 1, 2), tiny_config.preprocessing)
    exact, rough = (
        Detector(*arguments, device="cpu", precision=name).predict(image, threshold=0.0)
        for name in ("float32", "bfloat16")
    )
    assert 1e-5 < float((exact.scores - rough.scores).abs().max()) < 0.1


def test_weights_that_do_not_tell_of_changes_are_used_as_they_are(detector):
    with torch.inference_mode():
        detector.model.decoder.class_heads[-1].bias = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
    assert detector._network() is detector.model
