"""Files of strangers, in every layout: weights that cannot compute, sizes beyond memory, names that reach elsewhere."""

import json
import os
import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.inference.detector import Detector
from deformable_detr.models import DeformableDETRConfig, build
from deformable_detr.weights import read
from deformable_detr.weights.checkpoint import HEADER_ENTRY, build_model, save
from deformable_detr.weights.huggingface.reader import write_transformers
from deformable_detr.weights.official.keys import to_official_keys
from deformable_detr.weights.official.settings import to_args
from tests.weights.test_fuzz import official_documents, peak_memory, small_ours

LAYOUTS = ("ours", "transformers", "official")


@pytest.fixture(scope="module")
def written(tiny_config, tmp_path_factory):
    """A small file of each layout. Not to be changed."""
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("layouts")
    checkpoint = small_ours(tiny_config.model)
    save(checkpoint, folder / "ours.safetensors")
    write_transformers(checkpoint, folder / "theirs")
    torch.save(official_documents()["official"], folder / "official.pth")
    return folder


class Layout:
    """Weights and settings of a file, to be changed and written elsewhere."""

    def __init__(self, name, written):
        self.name = name
        if name == "official":
            self.document = torch.load(written / "official.pth")
            self.weights, self.settings = self.document["model"], self.document["args"]
            return
        path = written / ("ours.safetensors" if name == "ours" else "theirs/model.safetensors")
        self.weights = load_file(path)
        if name == "ours":
            raw = path.read_bytes()
            metadata = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])["__metadata__"]
            self.header = json.loads(metadata[HEADER_ENTRY])
            self.settings = self.header["model"]["config"]
        else:
            self.texts = {file: (path.parent / file).read_text() for file in ("preprocessor_config.json", "README.md")}
            self.settings = json.loads((path.parent / "config.json").read_text())

    def write(self, folder):
        if self.name == "ours":
            save_file(self.weights, folder / "x.safetensors", {HEADER_ENTRY: json.dumps(self.header)})
            return folder / "x.safetensors"
        if self.name == "official":
            torch.save({**self.document, "model": self.weights, "args": self.settings}, folder / "x.pth")
            return folder / "x.pth"
        save_file(self.weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.settings))
        for name, text in self.texts.items():
            (folder / name).write_text(text)
        return folder


@pytest.fixture(params=LAYOUTS)
def layout(request, written):
    return Layout(request.param, written)


# A weight in a layer, a buffer, and a head with its copies, by the words for them in all layouts.
PARTS = {"layer": ("linear1.weight", "fc1.weight"), "buffer": ("running_var",), "heads": ("class_embed", "class_heads")}


def names_of(layout, *words):
    return [name for name in layout.weights if any(word in name for word in words)]


@pytest.mark.parametrize(
    ("part", "value"), [("layer", float("nan")), ("buffer", float("inf")), ("heads", -float("inf"))]
)
def test_weights_and_buffers_that_are_not_finite_are_refused(layout, tmp_path, part, value):
    names = names_of(layout, *PARTS[part])
    for name in names if part == "heads" else names[-1:]:
        layout.weights[name] = layout.weights[name].clone()
        layout.weights[name].view(-1)[-1] = value
    with pytest.raises(
        CheckpointError, match=r"the weights are not finite, \S+ is the first; .* an earlier checkpoint"
    ):
        Detector.load(layout.write(tmp_path), device="cpu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_usual_format_of_numbers_is_read(layout, tmp_path, dtype):
    layout.weights = {name: t.to(dtype) if t.is_floating_point() else t for name, t in layout.weights.items()}
    loaded = read(layout.write(tmp_path))
    assert all(tensor.isfinite().all() for tensor in loaded.weights.values())
    if layout.name == "official":  # whose network takes seconds to build
        assert {tensor.dtype for tensor in loaded.weights.values()} == {dtype}
    else:
        model = build_model(loaded, tmp_path)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_numbers_beyond_float32_are_not_finite(layout, tmp_path):
    name = names_of(layout, "level_embed")[0]
    layout.weights[name] = torch.full_like(layout.weights[name], 1e300, dtype=torch.float64)
    with pytest.raises(CheckpointError, match=r"not finite, \S*level_embed is the first"):
        read(layout.write(tmp_path))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_numbers_of_other_types_are_refused(layout, tmp_path, dtype):
    name = names_of(layout, "level_embed")[0]
    layout.weights[name] = layout.weights[name].to(dtype)
    with pytest.raises(CheckpointError, match="level_embed") as caught:
        read(layout.write(tmp_path))
    assert "something else" in str(caught.value) or str(dtype).removeprefix("torch.") in str(caught.value)


# Names of a setting in each layout, and values that would ask for more memory than there is.
SIZES = {
    "num_queries": ("num_queries", "two_stage_num_proposals", 20_000),
    "hidden_dim": ("hidden_dim", "d_model", 2048),
    "ffn_dim": ("dim_feedforward", "encoder_ffn_dim", 16_384),
    "encoder_points": ("enc_n_points", "encoder_n_points", 32),
    "encoder_layers": ("enc_layers", "encoder_layers", 48),
    "num_levels": ("num_feature_levels", "num_feature_levels", 8),
    "num_heads": ("nheads", "encoder_attention_heads", 64),
}
PAIRS = {"encoder_ffn_dim": "decoder_ffn_dim", "encoder_attention_heads": "decoder_attention_heads"}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("much", [1, 10**9])
def test_sizes_are_compared_with_the_tensors_before_anything_is_built(layout, tmp_path, name, much):
    official, transformers, most = SIZES[name]
    setting = {"ours": name, "official": official, "transformers": transformers}[layout.name]
    layout.settings[setting] = most * much
    if layout.name == "transformers" and setting in PAIRS:
        layout.settings[PAIRS[setting]] = most * much
    path = layout.write(tmp_path)
    peak_memory()
    before, start = peak_memory(), time.process_time()
    # In two stages, no tensor tells the number of queries.
    free = name == "num_queries" and layout.name != "official" and much == 1
    if free:
        assert read(path).model.num_queries == most
    else:
        with pytest.raises(
            CheckpointError, match="can be at most" if much > 1 else r"x\.|model\.safetensors|config\.json"
        ):
            read(path)
    assert time.process_time() - start < 10
    after = peak_memory()
    assert before is None or after - before < 200 << 20


@pytest.mark.parametrize("classes", [50_000, 10**9])
def test_classes_by_number_alone_fill_no_memory(written, tmp_path, classes):
    layout = Layout("transformers", written)
    del layout.settings["id2label"]
    layout.settings["num_labels"] = classes
    peak_memory()
    before = peak_memory()
    with pytest.raises(CheckpointError, match=f"num_classes is {classes}|{classes}, 32"):
        read(layout.write(tmp_path))
    after = peak_memory()
    assert before is None or after - before < 200 << 20


def test_one_tensor_under_many_names_fills_no_memory(tmp_path):
    """Layers of the largest size, all of them parts of one tensor: 134 MB that would become 4 GB."""
    config = DeformableDETRConfig(encoder_layers=7, decoder_layers=7, hidden_dim=2048, ffn_dim=16_384)
    with torch.device("meta"):
        own = build(config, load_backbone_weights=False).state_dict()
    pool = torch.zeros(max(tensor.numel() for tensor in own.values()))
    weights = {name: pool[: tensor.numel()].view(tensor.shape) for name, tensor in own.items()}
    torch.save({"model": to_official_keys(weights, config), "args": to_args(config)}, tmp_path / "x.pth")
    del pool, weights
    peak_memory()
    before = peak_memory()
    with pytest.raises(CheckpointError, match="bytes of numbers under so many names that they would need"):
        read(tmp_path / "x.pth")
    after = peak_memory()
    assert before is None or after - before < 300 << 20


ELSEWHERE = (
    *(
        "hf-hub:timm/resnet50.a1_in1k",
        "hf_hub:timm/resnet50",
        "HF-HUB:x/y",
        "local-dir:.",
        "timm:resnet50",
        "../resnet50",
    ),
    *(
        "timm/resnet50",
        "/etc/resnet50",
        "resnet50.",
        ".resnet50",
        "resnet50.a.b",
        "res\nnet",
        "x" * 300,
        "C:\\resnet50",
    ),
)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_backbone_is_a_name_of_timms(name):
    with pytest.raises(ConfigError, match="it must be a name that timm itself knows, such as resnet50"):
        DeformableDETRConfig(backbone=name)


@pytest.mark.parametrize(
    "name", ["hf-hub:timm/resnet50.a1_in1k", "local-dir:.", "resnet50.no_such_weights", "resnet5000"]
)
def test_a_backbone_in_a_file_reaches_for_nothing(layout, tmp_path, monkeypatch, name):
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: asked.append(_))
    layout.settings["backbone"] = name
    if layout.name == "transformers":
        layout.settings.pop("backbone_config", None)
        layout.settings["use_timm_backbone"] = True
    with pytest.raises(CheckpointError, match=r"backbone|timm knows"):
        read(layout.write(tmp_path))
    assert asked == []


@pytest.mark.parametrize("weights", ["hub", "../../secret.pth", "/dev/zero", "https://example.com/x.pth"])
def test_weights_of_the_backbone_are_never_fetched_for_a_file(written, tmp_path, monkeypatch, weights):
    layout = Layout("ours", written)
    layout.settings |= {"backbone_weights": weights, "frozen_batch_norm": False}
    real = timm.create_model

    def create(*arguments, **options):
        assert not options.get("pretrained")
        return real(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", create)
    loaded = read(layout.write(tmp_path))
    assert loaded.model.backbone_weights == Path(weights).name
    assert Detector.load(layout.write(tmp_path), device="cpu").classes == ("cat", "dög", "newt")


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("deep", [DEEP, '{"model_type": ' + "[" * 150 + "]" * 150 + "}"])
def test_deep_json_is_refused(written, tmp_path, file, deep):
    layout = Layout("transformers", written)
    layout.write(tmp_path)
    (tmp_path / file).write_text(deep)
    if "index" in file:
        (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"{file} is not valid JSON: its values are nested too deeply"):
        read(tmp_path)


def test_a_deep_description_is_refused(written, tmp_path):
    layout = Layout("ours", written)
    save_file(layout.weights, tmp_path / "x.safetensors", {HEADER_ENTRY: DEEP})
    with pytest.raises(CheckpointError, match=r"description is not valid JSON: its values are nested too deeply"):
        read(tmp_path / "x.safetensors")
    header = ("[" * 50_000 + "]" * 50_000).encode()
    header = b'{"a":' + header + b"}"
    (tmp_path / "y.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match=r"y\.safetensors is not a whole safetensors file: its header cannot"):
        read(tmp_path / "y.safetensors")
    (tmp_path / "z.safetensors").write_bytes(struct.pack("<Q", 1 << 26) + b"{" + b" " * (1 << 26))
    with pytest.raises(CheckpointError, match=r"z\.safetensors has a header of 67,108,864 bytes; no weights need"):
        read(tmp_path / "z.safetensors")


CARDS = {
    "deep": "license: " + "[" * 100_000,
    "merges": "a: &a {x: 1}\n" + "".join(f"{k}: &{k} {{<<: [{', '.join(['*a'] * 40)}]}}\n" for k in "bcdefghij"),
    "bomb": "a: &a [x, x]\n"
    + "".join(f"{k}: &{k} [*{p}, *{p}, *{p}]\n" for p, k in zip("abcdefgh", "bcdefghi", strict=True)),
    "twice": "license: mit\nlicense: gpl",
    "no text": "license: {a: [1]}",
    "a number": "license: 3",
}


@pytest.mark.parametrize("card", CARDS)
def test_a_card_that_cannot_be_read_has_no_licence(written, tmp_path, card):
    layout = Layout("transformers", written)
    layout.texts["README.md"] = f"---\n{CARDS[card]}\n---\n"
    start = time.process_time()
    assert read(layout.write(tmp_path)).licence == ""
    assert time.process_time() - start < 5


def test_a_licence_is_one_line(written, tmp_path):
    layout = Layout("transformers", written)
    layout.texts["README.md"] = '---\r\nlicense: other\r\nlicense_name: "my\\e[31m\\nown"\r\n---\r\n'
    assert read(layout.write(tmp_path)).licence == "my?[31m own"


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "README.md", "model.safetensors"])
def test_a_pipe_is_never_waited_for(written, tmp_path, file):
    layout = Layout("transformers", written)
    layout.write(tmp_path)
    (tmp_path / file).unlink()
    os.mkfifo(tmp_path / file)
    if file == "README.md":
        assert read(tmp_path).licence == ""
        return
    with pytest.raises(CheckpointError, match=r"pipe or a device|weights"):
        read(tmp_path)


def test_a_pipe_or_a_device_is_no_file_of_weights(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    for path in (tmp_path / "x.safetensors", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match=r"cannot read .*: it is a pipe or a device, not a file"):
            read(path)
        with pytest.raises(CheckpointError, match="it is a pipe or a device, not a file"):
            read(path, sha256="0" * 64)


def test_arguments_that_hold_one_list_a_million_times(tmp_path):
    """`repr` of it would not end."""
    bomb = []
    for _ in range(60):
        bomb = [bomb, bomb]
    for name in ("num_queries", "backbone", "two_stage"):
        document = official_documents()["official"]
        document["args"][name] = bomb
        torch.save(document, tmp_path / "x.pth")
        if name == "two_stage":  # which is true only if it is True
            assert read(tmp_path / "x.pth").model.variant == "base"
            continue
        with pytest.raises(CheckpointError, match=name):
            read(tmp_path / "x.pth")


PREPROCESSING = [
    ({"short_side": 10**9, "max_side": 10**9}, {"size": {"shortest_edge": 10**9, "longest_edge": 10**9}}),
    ({"short_side": 0}, {"size": {"shortest_edge": 0, "longest_edge": 80}}),
    ({"short_side": True}, {"size": {"shortest_edge": True, "longest_edge": 80}}),
    ({"std": [0.2, 0.0, 0.2]}, {"image_std": [0.2, 0.0, 0.2]}),
    ({"std": [0.2, 1e-30, 0.2]}, {"image_std": [0.2, 1e-30, 0.2]}),
    ({"std": [0.2, float("nan"), 0.2]}, {"image_std": [0.2, float("nan"), 0.2]}),
    ({"mean": [float("nan")] * 3}, {"image_mean": [float("nan")] * 3}),
    ({"mean": [1e30] * 3}, {"image_mean": [1e30] * 3}),
    ({"mean": [10**400] * 3}, {"image_mean": [10**400] * 3}),
    ({"mean": "grey"}, {"image_mean": "grey"}),
]


@pytest.mark.parametrize(("ours", "theirs"), PREPROCESSING)
def test_preprocessing_that_cannot_be(written, tmp_path, ours, theirs):
    layout = Layout("ours", written)
    layout.header["preprocessing"] |= ours
    with pytest.raises(CheckpointError, match=r"x\.safetensors: .*(side|std|mean)"):
        read(layout.write(tmp_path))
    layout = Layout("transformers", written)
    layout.texts["preprocessor_config.json"] = json.dumps(json.loads(layout.texts["preprocessor_config.json"]) | theirs)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: .*(size|side|std|mean)"):
        read(layout.write(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["cat", "cat", "newt"]}, "the class name 'cat' appears twice"),
        ({"classes": "abc"}, "classes is 'abc', not a list"),
        ({"category_ids": [1, 1, 2]}, "the category id 1 appears twice"),
        ({"category_ids": {"1": 2}}, "category_ids is {'1': 2}, not a list"),
        ({"metrics": {"ap": float("nan")}}, "the metric 'ap' is nan"),
        ({"provenance": {"data": 3}}, "the provenance 'data' is 3"),
        ({"licence": 3}, "the licence is 3"),
        ({"model": []}, "incomplete"),
        ({"model": {"name": ["deformable_detr"], "config": {}}}, "it is of a model"),
    ],
)
def test_descriptions_of_ours_and_in_official_files_are_checked_alike(written, tmp_path, changes, message):
    ours, official = Layout("ours", written), Layout("official", written)
    ours.header |= changes
    official.document[HEADER_ENTRY] = json.dumps(ours.header)
    for layout in (ours, official) if "model" not in changes else (ours,):  # official settings stand elsewhere
        with pytest.raises(CheckpointError, match=rf"x\.\w+: .*{message}"):
            read(layout.write(tmp_path))


def test_labels_of_transformers_are_checked_as_class_names(written, tmp_path):
    layout = Layout("transformers", written)
    layout.settings["id2label"]["1"] = "two\nlines"
    with pytest.raises(CheckpointError, match=r"config\.json: its description: class name 2 holds a line break"):
        read(layout.write(tmp_path))


def test_what_would_be_refused_is_not_written(tiny_config, tmp_path):
    with pytest.raises(CheckpointError, match="the class name 'cat' appears twice"):
        replace(small_ours(tiny_config.model), classes=("cat", "cat", "dog"))
