import contextlib
import json
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deformable_detr.core.config import apply_overrides, fits, flat_settings, from_dict, named_settings, to_dict
from deformable_detr.core.errors import ConfigError
from deformable_detr.training import loggers as services


@dataclass(frozen=True, kw_only=True)
class Wheel:
    spokes: int = 32
    size: float = 28.5
    pressure: tuple[float, float] = (3.0, 2.5)


@dataclass(frozen=True, kw_only=True)
class Bike:
    brand: str
    kind: Literal["road", "gravel"] = "road"
    electric: bool = False
    gears: tuple[int, ...] = (1, 2, 3)
    weight: float | None = None
    owner: str | None = None
    wheel: Wheel = field(default_factory=Wheel)

    def __post_init__(self):
        if not self.gears:
            raise ConfigError("gears is empty; it must have at least one")


BIKE = Bike(brand="x", gears=(4, 5), weight=9.5, wheel=Wheel(spokes=24))


def test_a_round_trip_through_json_changes_nothing():
    assert from_dict(Bike, json.loads(json.dumps(to_dict(BIKE)))) == BIKE


def test_what_is_left_out_keeps_its_default():
    assert from_dict(Bike, {"brand": "x", "wheel": {"size": 26}}) == Bike(brand="x", wheel=Wheel(size=26.0))


def test_integers_are_numbers_and_lists_are_tuples():
    bike = from_dict(Bike, {"brand": "x", "weight": 9, "gears": [1], "wheel": {"pressure": [1, 2]}})
    assert (bike.weight, bike.gears, bike.wheel.pressure) == (9.0, (1,), (1.0, 2.0))
    assert isinstance(bike.weight, float)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"brnd": "x"}, "unknown setting brnd; did you mean brand?"),
        ({"brand": "x", "wheel": {"spoke": 3}}, "unknown setting wheel.spoke; did you mean wheel.spokes?"),
        ({"brand": "x", "qqqq": 3}, "unknown setting qqqq; there are brand, kind, electric"),
        ({}, "setting brand is missing"),
        ({"brand": 3}, "setting brand is 3; it must be a text"),
        ({"brand": "x", "electric": 1}, "setting electric is 1; it must be true or false"),
        ({"brand": "x", "wheel": {"spokes": True}}, "setting wheel.spokes is True; it must be an integer"),
        ({"brand": "x", "wheel": {"spokes": 3.0}}, "setting wheel.spokes is 3.0; it must be an integer"),
        ({"brand": "x", "wheel": {"size": False}}, "setting wheel.size is False; it must be a number"),
        ({"brand": "x", "wheel": 3}, "setting wheel is 3; it must be a group of settings"),
        ({"brand": "x", "kind": "rode"}, "'rode'; it must be one of 'road', 'gravel'; did you mean 'road'?"),
        ({"brand": "x", "gears": [1, "2"]}, "setting gears[1] is '2'; it must be an integer"),
        ({"brand": "x", "gears": 5}, "setting gears is 5; it must be a list, each an integer"),
        ({"brand": "x", "wheel": {"pressure": [1]}}, "wheel.pressure is [1]; it must be a list of 2, each a number"),
        ({"brand": "x", "weight": "9"}, "setting weight is '9'; it must be a number or null"),
        ({"brand": "x", "gears": []}, "gears is empty"),
        ({"brand": "x", "weight": 10**400}, "000...000"),
        ({"brand": ["\x1b[31m"] * 10**5}, "it must be a text"),
        ({"b" * 10**5: "x"}, "bbb...; there are"),
    ],
)
def test_what_does_not_fit_is_named(data, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(Bike, data)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_overrides_are_applied_together_and_leave_the_original_alone():
    changed = apply_overrides(BIKE, ["wheel.spokes=36", "gears=[7, 8]", "kind=gravel", "electric=true", "weight=null"])
    assert changed == Bike(brand="x", gears=(7, 8), kind="gravel", electric=True, wheel=Wheel(spokes=36))
    assert BIKE.wheel.spokes == 24
    assert apply_overrides(BIKE, []) == BIKE


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("brand=road runner", "brand", "road runner"),
        ('brand="quoted"', "brand", "quoted"),
        ("brand=2024", "brand", "2024"),
        ("brand=a=b", "brand", "a=b"),
        ("owner=None", "owner", None),
        ("owner=Ann", "owner", "Ann"),
        ("electric=True", "electric", True),
        ("gears=(1,)", "gears", (1,)),
        (" weight = 1e-1 ", "weight", 0.1),
    ],
)
def test_values_are_json_or_python_or_text(override, name, value):
    assert getattr(apply_overrides(BIKE, [override]), name) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("wheel", "cannot read the setting 'wheel'; write name=value"),
        ("=3", "cannot read the setting '=3'"),
        ("wheel.spoks=3", "unknown setting wheel.spoks; did you mean wheel.spokes?"),
        ("spoke=3", "unknown setting spoke; did you mean wheel.spokes?"),
        ("spoks=3", "unknown setting spoks; did you mean wheel.spokes?"),
        ("wheel=3", "setting wheel is 3; it must be a group of settings"),
        ("wheel.spokes=many", "setting wheel.spokes is 'many'; it must be an integer"),
        ("wheel.spokes=3.5", "setting wheel.spokes is 3.5; it must be an integer"),
    ],
)
def test_overrides_that_cannot_be_are_errors(override, message):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(BIKE, [override])
    assert message in str(caught.value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["brand", "gears", "weight", "wheel", "kind", "x"]), PLAIN, max_size=4))
def test_any_data_is_a_config_or_a_config_error(data):
    with contextlib.suppress(ConfigError):
        assert isinstance(from_dict(Bike, data), Bike)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20))
def test_any_override_is_a_config_or_a_config_error(text):
    with contextlib.suppress(ConfigError):
        assert isinstance(apply_overrides(BIKE, [text, f"wheel.spokes={text}", f"brand={text}"]), Bike)


def test_settings_are_named_as_on_the_command_line():
    assert flat_settings({"a": {"b": {"c": 1}, "d": [2, 3]}, "e": None}) == {"a.b.c": 1, "a.d": [2, 3], "e": None}
    assert services.ServiceName.__args__ == ("tensorboard", "wandb", "mlflow")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["brand"], r"setting Bike is \['brand'\]; it must be a group of settings"),
        ({"brand": "x", "weight": 10**400}, "setting weight is 1000.*; it must be a number or null"),
        ({"brand": "x" * 10**6, "gears": 3}, "setting gears is 3"),
        ({"brand": 3, "y" * 10**6: 3}, r"^unknown setting y{100}\.\.\.; there are brand"),
        ({"brand": "x", "kind": "z" * 10**6}, "setting kind is 'zzz.*zzz'; it must be one of 'road', 'gravel'"),
        ({"brand": "x", "kind": ["road"]}, r"setting kind is \['road'\]; it must be"),
        ({"brand": "x\x1b[31m", "wheel": "\x1b[31m"}, r"setting wheel is '\\x1b\[31m'; it must be a group"),
    ],
)
def test_messages_are_short_and_printable_whatever_stands_in_a_file(data, message):
    with pytest.raises(ConfigError, match=message) as caught:
        from_dict(Bike, data)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_what_holds_one_list_a_million_times_is_shown_in_a_moment():
    bomb = []
    for _ in range(60):
        bomb = [bomb, bomb]
    for name in ("brand", "kind", "electric", "gears", "weight", "wheel"):
        with pytest.raises(ConfigError, match=name):
            from_dict(Bike, {"brand": "x"} | {name: bomb})


def test_changes_name_settings_in_full():
    assert named_settings(BIKE, {"spokes": 20, "brand": "y"}) == {"wheel.spokes", "brand"}
    assert named_settings(BIKE, {"wheel": {"size": 20.0}}) == {"wheel.size"}
    assert named_settings(BIKE, {"wheel": Wheel()}) == {"wheel.spokes", "wheel.size", "wheel.pressure"}
    assert named_settings(BIKE, {}) == frozenset()
    with pytest.raises(ConfigError, match="unknown setting spoke; did you mean"):
        named_settings(BIKE, {"spoke": 3})


def test_values_fit_as_from_dict_takes_them():
    assert fits([1, 2], tuple[int, ...])
    assert fits(1, float)
    assert fits(None, str | None)
    assert not fits(True, int)
    assert not fits("1", int)
    assert not fits(10**400, float)
