import time

import pytest

from deformable_detr.core.errors import CheckpointError
from deformable_detr.weights.description import check_classes, check_facts, short_fact, short_facts

ODD_CLASSES = [
    (["", "dog"], "class name 1 must be text, not ''"),
    (["cat", "  "], "class name 2 must be text"),
    (["cat", "cat"], "the class name 'cat' appears twice"),
    (["cat", 7], "class name 2 must be text, not 7"),
    (["cat", None], "class name 2 must be text, not None"),
    (["cat", ["dog"]], "class name 2 must be text"),
    (["ca\x1b[2Jt", "dog"], "class name 1 holds a line break or another control character"),
    (["cat", "two\nlines"], "class name 2 holds a line break"),
    (["cat", "\u2028"], "class name 2 "),
    (["cat", "dog\0"], "class name 2 holds a zero character"),
    (["cat", "\ud800"], "class name 2 is not valid Unicode"),
    (["cat", "x" * 10**6], "class name 2 has 1000000 letters: 'xxx.*; a class name has at most 500"),
]
ODD_IDS = [
    ([1, 1], "the category id 1 appears twice"),
    ([True, 2], "category id 1 must be a whole number of at most 64 bits, not True"),
    ([1, 2.0], "category id 2 must be a whole number"),
    ([1, float("nan")], "category id 2 must be a whole number"),
    ([1, "2"], "category id 2 must be a whole number"),
    ([1, 2**63], "category id 2 must be a whole number of at most 64 bits"),
    ([1, 10**5000], "category id 2 .* not a number with thousands of digits"),
    ([None, 2], "category id 1 must be a whole number"),
]
ODD_FACTS = [
    (("ap", {}, ""), "metrics is 'ap', not a table"),
    (({1: 0.5}, {}, ""), "metrics is .*, not a table with names"),
    (({"ap": "0.5"}, {}, ""), "the metric 'ap' is '0.5', not a finite number"),
    (({"ap": True}, {}, ""), "the metric 'ap' is True, not a finite number"),
    (({"ap": None}, {}, ""), "the metric 'ap' is None"),
    (({"ap": float("nan")}, {}, ""), "the metric 'ap' is nan, not a finite number"),
    (({"ap": float("-inf")}, {}, ""), "the metric 'ap' is -inf"),
    (({str(i): 0 for i in range(1001)}, {}, ""), "metrics has 1001 entries"),
    (({}, ["me"], ""), "provenance is .*, not a table"),
    (({}, {"data": 3}, ""), "the provenance 'data' is 3, not a text"),
    (({}, {"data": ["a"]}, ""), "the provenance 'data' is"),
    (({}, {}, None), "the licence is None, not a text"),
    (({}, {}, {"id": "MIT"}), "the licence is {'id': 'MIT'}, not a text"),
]


@pytest.mark.parametrize(("classes", "message"), ODD_CLASSES)
def test_classes_that_cannot_be(classes, message):
    with pytest.raises(CheckpointError, match=message):
        check_classes(classes, [1, 2], 2)


@pytest.mark.parametrize(("ids", "message"), ODD_IDS)
def test_category_ids_that_cannot_be(ids, message):
    with pytest.raises(CheckpointError, match=message):
        check_classes(["cat", "dog"], ids, 2)


def test_counts_must_agree():
    with pytest.raises(CheckpointError, match="2 class names and 3 category ids for a model of 2 classes"):
        check_classes(["cat", "dog"], [1, 2, 3], 2)


def test_each_of_many_classes_is_looked_at_once():
    names = [f"class {number}" for number in range(20_000)]
    start = time.process_time()
    check_classes(names, range(20_000), 20_000)
    assert time.process_time() - start < 5  # with a look at all before each it would be minutes
    with pytest.raises(CheckpointError, match="'class 7' appears twice"):
        check_classes([*names, "class 7"], range(20_001), 20_001)


@pytest.mark.parametrize(("facts", "message"), ODD_FACTS)
def test_facts_that_cannot_be(facts, message):
    with pytest.raises(CheckpointError, match=message):
        check_facts(*facts)


def test_what_is_usual_passes():
    check_classes(("traffic light", "größe", "人", "👩‍🚀", "unused-0"), (0, -3, 2**63 - 1, 90, 17), 5)
    check_facts({"ap": 0.25, "ap_small": -1, "epochs": 3.0}, {"data": "pets", "": ""}, "")


def test_texts_of_strangers_can_be_printed():
    assert short_fact("MIT\x1b[31m\nand more") == "MIT?[31m and more"
    assert short_facts({"da\nta": "\ud800" + "x" * 9999}) == {"da ta": "?" + "x" * 1999 + "..."}
