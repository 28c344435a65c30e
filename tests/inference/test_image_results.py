from PIL import Image

from deformable_detr.inference.image_results import PredictionSettings, results_here


def test_results_come_with_the_images_and_bad_files_last(detector, tmp_path):
    bad, good = tmp_path / "a.png", tmp_path / "b.png"
    bad.write_bytes(b"no picture")
    Image.new("RGB", (40, 30)).save(good)
    settings = PredictionSettings(threshold=0.0, skip_bad_images=True, max_detections=5)
    (first, image), (last, nothing) = results_here(detector, [bad, good], settings)
    assert (first.path, first.size_wh, first.error) == (good, (40, 30), None)
    assert (image.size, nothing) == ((40, 30), None)
    assert len(first.record()["detections"]) == 5
    assert last.path == bad
    assert "a.png" in last.error
