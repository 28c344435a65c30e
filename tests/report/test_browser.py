"""The page as a browser sees it: nothing fetched, nothing complained of, nothing wider than a phone, two themes.

A page of ours holds the report in a frame as wide as a phone, measures it with a script, and leaves what it found in
its own text, which the browser prints. The report itself runs no scripts.
"""

import json
import re
import shutil
import subprocess

import pytest
from PIL import Image

from deformable_detr.data.statistics import statistics_of
from deformable_detr.evaluation.analysis import analyse
from deformable_detr.report import sections
from deformable_detr.report.history import history_of
from deformable_detr.report.mistakes import worst_examples
from deformable_detr.report.page import page
from tests.evaluation.test_analysis import evaluation
from tests.report.cases import random_case
from tests.report.test_history import rows

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium here")]

HARNESS = """<!doctype html><meta name="color-scheme" content="light dark"><body style="margin:0">
<iframe src="report.html" style="width:WIDTHpx;height:800px;border:0"></iframe><pre id="found"></pre><script>
onload = () => {
  const frame = document.querySelector("iframe"), inner = frame.contentDocument, root = inner.documentElement;
  const scrolls = e => e && (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  inner.querySelectorAll("details").forEach(e => { e.open = true; });
  const shown = [...inner.querySelectorAll("body *")].filter(e => e.getClientRects().length);
  const small = shown.filter(e => e.childNodes.length && !e.closest("svg, style") && e.textContent.trim()
    && parseFloat(getComputedStyle(e).fontSize) < 12);
  const letters = [...inner.querySelectorAll("svg.chart")].map(e => 11 * e.getBoundingClientRect().width / 340);
  document.getElementById("found").textContent = "FOUND" + JSON.stringify({
    width: root.clientWidth, scroll: root.scrollWidth,
    outside: shown.filter(e => e.getBoundingClientRect().right > root.clientWidth + 1 && !scrolls(e)
      && !e.closest("svg")).map(e => e.outerHTML.slice(0, 80)),
    fetched: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name)
      .filter(name => !name.startsWith("data:")),
    images: [...inner.images].map(e => e.naturalWidth),
    small: small.map(e => e.outerHTML.slice(0, 80)), letters: Math.min(...letters),
    paper: getComputedStyle(inner.body).backgroundColor, ink: getComputedStyle(inner.body).color,
  }) + "END";
};
</script>"""


def report_of(num_classes, folder):
    found, data = random_case(0, num_classes=num_classes, num_images=8)
    for number, one in enumerate(data.samples):
        object.__setattr__(one, "path", folder / f"{number}.png")
        Image.new("RGB", one.size_wh, (40 * number % 255, 99, 9)).save(one.path)
    report = evaluation(found, data)
    analysis = analyse(report)
    splits = {"training": statistics_of(data), "validation": statistics_of(data)}
    shown = [
        sections.at_a_glance([("AP, %", "55.5"), ("a longer name", "a value of some length")]),
        sections.training(history_of(rows(30))),
        sections.accuracy(report, analysis),
        sections.thresholds(analysis),
        sections.confusion(analysis, list(report.metrics.per_class)),
        sections.errors(analysis),
        sections.calibration(analysis),
        sections.mistakes(worst_examples(analysis, found, data), analysis.threshold),
        sections.data(splits, "a path without any spaces: /" + "abc/" * 40),
        sections.configuration({"model.backbone_weights": "/" + "abcdef/" * 30}, [("torch", "2.11")]),
    ]
    return page("Run of a test", "x" * 200, ["A note with a path: /" + "abc/" * 40], shown)


def look(folder, width, *, dark):
    (folder / "frame.html").write_text(HARNESS.replace("WIDTH", str(width)))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += ["--enable-logging=stderr", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command += [
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=5000",
        f"--window-size={width + 40},900",
    ]
    command += ["--dump-dom", (folder / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    # Of the printed page the last: the script itself has the words, too.
    found = re.findall(r"FOUND(\{.*?\})END", done.stdout)
    return json.loads(found[-1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), complaints


@pytest.mark.parametrize("num_classes", [3, 80])
@pytest.mark.parametrize("width", [390, 1240])
def test_nothing_is_fetched_cut_off_or_tiny(tmp_path, width, num_classes):
    (tmp_path / "report.html").write_text(report_of(num_classes, tmp_path), encoding="utf-8")
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    found, complaints = look(tmp_path, width, dark=False)
    assert complaints == []
    assert found["fetched"] == []
    assert found["width"] >= width - 20
    assert found["scroll"] <= found["width"]
    assert found["outside"] == []
    assert found["images"]
    assert min(found["images"]) > 0
    assert found["small"] == []
    assert found["letters"] >= 10


def test_light_and_dark_follow_the_reader(tmp_path):
    (tmp_path / "report.html").write_text(report_of(3, tmp_path), encoding="utf-8")
    for dark, paper in ((False, "rgb(255, 255, 255)"), (True, "rgb(15, 19, 24)")):
        found, complaints = look(tmp_path, 390, dark=dark)
        assert complaints == []
        assert found["paper"] == paper
        assert found["ink"] != found["paper"]


def test_the_harness_sees_what_is_wrong(tmp_path):
    bad = page("Bad", "", [], []).replace(
        "<main>", '<main><div style="width:900px">x</div><img src="http://localhost:9/x">'
    )
    (tmp_path / "report.html").write_text(bad, encoding="utf-8")
    found, complaints = look(tmp_path, 390, dark=False)
    assert found["scroll"] > found["width"]
    assert found["outside"]
    assert any("Content Security Policy" in line for line in complaints)
