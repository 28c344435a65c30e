def test_a_page_from_the_command_line(ddetr, recipe, scenes, tmp_path):
    run = tmp_path / "run"
    result = ddetr(
        "train",
        recipe,
        "--data",
        scenes,
        "--output",
        run,
        "--epochs",
        1,
        "--device",
        "cpu",
        "--no-report",
        "--log",
        "none",
    )
    assert result.code == 0, result.err
    assert sorted(path.name for path in run.iterdir()) == [
        "best.safetensors", "config.json", "data.json", "last-1.safetensors", "last.safetensors", "metrics.csv",
        "metrics.jsonl",
    ]  # fmt: skip
    result = ddetr("report", run, "--device", "cpu")
    assert (result.code, result.out) == (0, f"{run / 'report.html'}\n")
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    result = ddetr("report", run, "--data", tmp_path / "nope", "--device", "cpu")
    assert (result.code, result.out) == (1, "")
    assert "nope: no such file or folder" in result.err
    elsewhere = tmp_path / "new" / "folder" / "page.html"
    assert ddetr("report", run, "--output", elsewhere, "--device", "cpu").out == f"{elsewhere}\n"
    assert elsewhere.is_file()
    result = ddetr("report", run, "--output", tmp_path, "--device", "cpu")
    assert (result.code, result.out) == (1, "")
    assert "it is a folder" in result.err
    assert "detections" not in result.err  # nothing was evaluated for this


def test_a_folder_that_is_no_run(ddetr, tmp_path):
    result = ddetr("report", tmp_path)
    assert result.code == 1
    assert result.err.startswith("Error: ")
    assert "is not a run folder" in result.err
