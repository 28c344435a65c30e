from dataclasses import replace

import pytest

from deformable_detr.core.errors import OutputError
from deformable_detr.training import demo as demo_module
from deformable_detr.training.demo import NumScenes, demo

FEW = NumScenes(train=5, val=2, unseen=3)


@pytest.fixture
def config(tiny_config):
    return tiny_config.with_settings(epochs=1)


def test_it_leaves_pictures_a_report_and_a_summary_and_may_be_repeated(config, tmp_path):
    for _ in range(2):
        result = demo(tmp_path / "demo", config=config, scenes=FEW, device="cpu")
    names = {path.name for path in result.folder.iterdir()}
    assert names == {"scenes", "unseen", "run", "pictures", "contact_sheet.jpg", "summary.md"}
    assert "<svg" in (result.folder / "run" / "report.html").read_text()
    assert len(list((result.folder / "pictures").iterdir())) == 3
    assert (result.folder / "summary.md").read_text() == result.summary
    for word in (
        "Drew 5 training scenes",
        "AP50",
        "| disc |",
        "ddetr train --data",
        "those of epoch 1",
        "`run/report.html`",
    ):
        assert word in result.summary


def test_curves_of_an_earlier_demonstration_make_room(config, tmp_path):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "curves.png").touch()
    assert demo(tmp_path, config=config, scenes=FEW, device="cpu") is not None
    assert not (tmp_path / "curves.png").exists()


def test_a_report_that_failed_is_not_linked(config, tmp_path, monkeypatch):
    whole = demo_module.train
    monkeypatch.setattr(demo_module, "train", lambda *a, **k: whole(*a, report=False, **k))
    summary = demo(tmp_path / "demo", config=config, scenes=FEW, device="cpu").summary
    assert "report.html" not in summary
    assert "`run/`" in summary


def test_what_others_have_written_stays(config, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match=r"holds thesis\.tex, which no demonstration has written"):
        demo(tmp_path, config=config, scenes=FEW, device="cpu")
    (tmp_path / "thesis.tex").rename(tmp_path / "pictures")  # a name of ours, but no demonstration around it
    with pytest.raises(OutputError, match="holds pictures"):
        demo(tmp_path, config=config, scenes=FEW, device="cpu")
    with pytest.raises(OutputError, match="cannot write to"):
        demo(tmp_path / "pictures", config=config, scenes=FEW, device="cpu")


def test_ctrl_c_leaves_the_rest_out(config, tmp_path, monkeypatch):
    whole = demo_module.train
    monkeypatch.setattr(demo_module, "train", lambda *a, **k: replace(whole(*a, **k), interrupted=True))
    assert demo(tmp_path / "demo", config=config, scenes=FEW, device="cpu") is None
    assert not (tmp_path / "demo" / "summary.md").exists()
