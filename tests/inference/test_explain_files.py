import json

import pytest
import torch
from PIL import Image

from deformable_detr.core.errors import ConfigError, DataError, OutputError
from deformable_detr.inference.explain_files import ExplainSettings, explain_files
from deformable_detr.inference.files import predict_files
from tests.inference.test_explain import detector_of, picture

EVERYTHING = ExplainSettings(threshold=0.0, top=2, layer="all", chained=True, gradients="direct")


@pytest.fixture
def photos(tmp_path):
    """Two photos of one name, in two folders."""
    paths = [tmp_path / folder / "street.png" for folder in ("a", "b")]
    for path, width in zip(paths, (200, 150), strict=True):
        path.parent.mkdir()
        picture(width, 120).save(path)
    return paths


def test_everything_is_written_once(photos, tmp_path):
    out = tmp_path / "out"
    found = list(explain_files(detector_of("refine"), photos, EVERYTHING, output=out))
    names = {path.name for path in out.iterdir()}
    kinds = ("layer1", "layer2", "layer3", "chained", "gradients")
    pictures = {f"{stem}_{n}_{kind}.jpg" for stem in ("street", "street-2") for n in (1, 2) for kind in kinds}
    assert names == pictures | {"street.json", "street-2.json"}
    for one, stem, width in zip(found, ("street", "street-2"), (200, 150), strict=True):
        record = json.loads((out / f"{stem}.json").read_text(encoding="utf-8"))
        assert record == json.loads(json.dumps(one.record()))
        assert (record["image"], record["width"]) == (str(one.path), width)
        assert record["detections"][1]["pictures"] == [f"{stem}_2_{kind}.jpg" for kind in kinds]
    for name in pictures:
        with Image.open(out / name) as drawn:
            assert max(drawn.size) >= 1000


def test_nothing_is_written_without_a_folder(photos):
    (one,) = explain_files(detector_of("detr"), photos[:1], ExplainSettings(threshold=0.0))
    assert one.pictures == ()
    assert "pictures" not in one.record()["detections"][0]


def test_effects_are_measured_where_they_are_drawn(photos, tmp_path):
    detector = detector_of("base")
    for settings, measured in (
        (ExplainSettings(threshold=0.0, top=1), [False, False, True]),
        (ExplainSettings(threshold=0.0, top=1, layer="all"), [False, False, True]),
        (ExplainSettings(threshold=0.0, top=1, size="weight"), [False, False, False]),
        (ExplainSettings(threshold=0.0, top=1, layer=1, size="effect"), [True, True, True]),
        (ExplainSettings(threshold=0.0, top=1, layer=3, size="effect"), [False, False, True]),
    ):
        (one,) = explain_files(detector, photos[:1], settings, output=tmp_path / "out")
        assert [layer.effects is not None for layer in one.explanation.layers] == measured


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("base", {"top": 21}, "21 detections are to be explained; it must be 1 to 20"),
        ("base", {"layer": 4}, "there is no decoder layer 4: this network has layers 1 to 3"),
        ("dino", {"head": 2}, "there is no head 2: this network has heads 0 to 1"),
        ("refine", {"level": 3}, "there is no level 3: this network has levels 0 to 2"),
        ("detr", {"level": 0}, "a DETR has no sampling points, whose size or level could be chosen"),
        ("detr", {"size": "weight"}, "a DETR has no sampling points"),
        ("detr", {"layer": 4}, "there is no decoder layer 4"),
    ],
)
def test_settings_that_fit_no_network(photos, tmp_path, name, changes, message):
    settings = ExplainSettings(**changes)
    with pytest.raises(ConfigError, match=message):
        next(explain_files(detector_of(name), photos, settings, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_place_outside_names_the_image(photos):
    with pytest.raises(ConfigError, match=r"b/street\.png: the place 180,10 is outside the image, which has 150 x 120"):
        list(explain_files(detector_of("base"), photos, ExplainSettings(at=(180.0, 10.0))))


def test_photos_are_not_replaced_and_must_be_readable(photos, tmp_path):
    with pytest.raises(OutputError, match="holds the images themselves"):
        next(explain_files(detector_of("base"), photos, ExplainSettings(), output=photos[0].parent))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to the output folder"):
        next(explain_files(detector_of("base"), photos, ExplainSettings(), output=tmp_path / "file"))
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad\.jpg"):
        next(explain_files(detector_of("base"), [bad], ExplainSettings()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ExplainSettings(chained=True, gradients="total"), "--chained, --gradients choose what is drawn"),
        (ExplainSettings(head=1), "--head choose what is drawn, and nothing is: give a folder with --output"),
    ],
)
def test_choices_of_pictures_without_pictures(photos, settings, message):
    with pytest.raises(ConfigError, match=message):
        next(explain_files(detector_of("base"), photos, settings))


def test_photos_that_are_stored_on_their_side(tmp_path):
    """Turned once, and not again: a photo taken upright is explained as it is shown, and so is it predicted."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(200, 120).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    detector = detector_of("two_stage")
    (one,) = explain_files(detector, [tmp_path / "turned.jpg"], ExplainSettings(threshold=0.0, top=3))
    (by_path,) = predict_files(detector, [tmp_path / "turned.jpg"], threshold=0.0)
    direct = detector.predict(tmp_path / "turned.jpg", threshold=0.0)
    assert one.explanation.size_wh == by_path.size_wh == (120, 200)
    torch.testing.assert_close(by_path.detections.boxes_xyxy, direct.boxes_xyxy)
    torch.testing.assert_close(one.explanation.detections.boxes_xyxy, direct.boxes_xyxy[:3], atol=0.01, rtol=0)


def test_detr_without_auxiliary_outputs_draws_its_last_layer(photos, tmp_path):
    detector = detector_of("detr")
    detector.model.decoder.auxiliary = False
    (one,) = explain_files(
        detector, photos[:1], ExplainSettings(threshold=0.0, top=1, layer="all"), output=tmp_path / "o"
    )
    assert [path.name for path in one.pictures[0]] == [f"street_1_layer{number}.jpg" for number in (1, 2, 3)]
    (last,) = explain_files(detector, photos[:1], ExplainSettings(threshold=0.0, top=1), output=tmp_path / "p")
    assert [path.name for path in last.pictures[0]] == ["street_1_layer3.jpg"]
    assert last.pictures[0][0].read_bytes() == (tmp_path / "o/street_1_layer3.jpg").read_bytes()
