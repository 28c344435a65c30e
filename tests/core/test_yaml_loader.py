import time

import pytest

from deformable_detr.core.yaml_loader import YamlError, yaml_value


def test_plain_values_and_merges_as_pyyaml_reads_them():
    assert yaml_value("a: [1, x, 2.5, null]\nb: {c: true}") == {"a": [1, "x", 2.5, None], "b": {"c": True}}
    text = "base: &b {x: 1, y: 2}\nmore: &m {<<: *b, y: 3}\nall: {<<: [*m, *b], z: 4}"
    assert yaml_value(text) == {"base": {"x": 1, "y": 2}, "more": {"x": 1, "y": 3}, "all": {"x": 1, "y": 3, "z": 4}}


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' appears twice", "line 3, column 1"),
        ("a: [1", "not YAML", "line 1, column 6"),
        ("a: &a {<<: *a}", "not YAML|nested too deeply", None),
        ("a: &a [*a]", "nested too deeply", ""),
        ("[" * 5000, "nested too deeply", ""),
        ("- " * 150 + "1", "nested too deeply", ""),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor", "line 1, column 4"),
        ("a: !!int x", "not usable YAML", ""),
    ],
)
def test_what_is_refused(text, message, place):
    with pytest.raises(YamlError, match=message) as caught:
        yaml_value(text)
    assert place is None or caught.value.place == place
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [3, 8, 20])
def test_merges_that_multiply_end_at_once(depth):
    lines = ["a0: &a0 {x0: 1, x1: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, depth + 1)]
    began = time.process_time()
    if depth == 3:
        assert yaml_value("\n".join(lines))["a3"] == {"x0": 1, "x1": 1}
    else:
        with pytest.raises(YamlError, match=r"merges \(<<\) make more than 10000 keys"):
            yaml_value("\n".join(lines))
    assert time.process_time() - began < 5
