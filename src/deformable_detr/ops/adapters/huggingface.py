"""Acceleration of models of the transformers library by this operator, one model at a time, and its undoing.

The library's models call multi-scale deformable attention in three ways:

- through a module, `MultiScaleDeformableAttention` (Deformable DETR, RT-DETR, RF-DETR, LW-DETR, Grounding DINO, MM
  Grounding DINO, OmDet-Turbo, PP-DocLayout V2 to V4);
- through a function kept as an attribute (D-FINE, DEIMv2);
- through a function that is global in the model's file (RT-DETRv2, Mask2Former, OneFormer).

In each case the modules concerned get a subclass of their class that differs in this one place. The library itself
does not change, nor do other models, parameters, hooks or the attributes of the modules.
"""

import functools
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from deformable_detr.ops.msda import multi_scale_deformable_attention

_SHARED_MODULE = "MultiScaleDeformableAttention"
_ATTRIBUTE = "ms_deformable_attn_core"
_ORIGINAL = "_before_acceleration"

_Way = Literal["module", "attribute", "global"]
_Sizes = Sequence[Sequence[int]]

# Parameters of each in the versions that are known here. A version with other parameters may give them a meaning, so
# it is left alone.
_TAKES = {
    _SHARED_MODULE: "self value value_spatial_shapes value_spatial_shapes_list level_start_index sampling_locations "
    "attention_weights im2col_step",
    "multi_scale_deformable_attention": "value value_spatial_shapes sampling_locations attention_weights",
    "multi_scale_deformable_attention_v2": "value value_spatial_shapes sampling_locations attention_weights "
    "num_points_list method",
}


class Acceleration(NamedTuple):
    """Result of `accelerate`, by the names that modules have in the model."""

    replaced: tuple[str, ...]
    """Names of the modules that run on the operator now."""
    left: dict[str, str]
    """Reason for each module that keeps its own code although it does this kind of attention."""


def accelerate(model: nn.Module) -> Acceleration:
    """Let a model of transformers run on `multi_scale_deformable_attention`; `restore` undoes it.

    Only the attention modules of this model change, at any depth, and also in a wrapped model. Weights, `state_dict`,
    `save_pretrained`, hooks and `repr` stay as they are, and the model still trains, compiles and runs under autocast.
    A copy or a pickle of the model is accelerated, too; restore the model before pickling it for a place without this
    package. A second call changes nothing.

    Samples are weighted and summed in float32 even where the model is half precision, which makes its last digits more
    exact. A location that is NaN adds nothing, while before it made the whole result NaN.

    Args:
        model: the model itself; for a pipeline, `pipeline.model`.

    Returns:
        The modules that were replaced, and those that were left with the reason.

    Raises:
        ValueError: nothing in the model can run on the operator. The model is unchanged.
    """
    ways: dict[str, _Way] = {}
    replaced: list[str] = []
    left: dict[str, str] = {}
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if hasattr(type(module), _ORIGINAL):
            replaced.append(name)
            continue
        way = _way(module)
        if way is None:
            continue
        reason = _why_left(module, way)
        if reason is None:
            ways[name] = way
            replaced.append(name)
        else:
            left[name] = reason
    if not replaced:
        raise ValueError(_nothing(model, left))
    for name, way in ways.items():
        modules[name].__class__ = _subclass(type(modules[name]), way)  # type: ignore[arg-type] # a class has a hash
    return Acceleration(tuple(replaced), left)


def restore(model: nn.Module) -> None:
    """Undo `accelerate`: every module of the model gets its own class back; other models stay as they are.

    Args:
        model: the model that was accelerated.

    Raises:
        ValueError: the class of an accelerated module was changed again since. The model is unchanged.
    """
    accelerated = [module for module in model.modules() if hasattr(type(module), _ORIGINAL)]
    for module in accelerated:
        if _ORIGINAL not in vars(type(module)):
            raise ValueError(
                f"the class of a {type(module).__name__} was changed again after accelerate, to {type(module)}; undo "
                "that first"
            )
    for module in accelerated:
        module.__class__ = vars(type(module))[_ORIGINAL]


def _way(module: nn.Module) -> _Way | None:
    """Way in which a module calls the attention; None if it does not."""
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or not _at_home(forward):
        return None
    if forward.__qualname__ == f"{_SHARED_MODULE}.forward":
        return "module"
    if _is_core(vars(module).get(_ATTRIBUTE)):
        return "attribute"
    if _global_core(forward) is not None:
        return "global"
    return None


def _why_left(module: nn.Module, way: _Way) -> str | None:
    forward = type(module).forward
    if way == "module":
        theirs, known = forward, _TAKES[_SHARED_MODULE]
    else:
        theirs = vars(module)[_ATTRIBUTE] if way == "attribute" else forward.__globals__[str(_global_core(forward))]
        known = _TAKES[theirs.__name__]
    takes = theirs.__code__.co_varnames[: theirs.__code__.co_argcount]
    if takes != tuple(known.split()):
        return f"it takes ({', '.join(takes)}); known here is ({', '.join(known.split())})"
    if "forward" in vars(module):
        return "its forward has been replaced, perhaps by a kernel or a hook of another library"
    method = getattr(module, "method", getattr(module, "decoder_method", "default"))
    if method != "default":
        return f"its method is {method!r}, which rounds locations to whole pixels; the operator interpolates"
    return None


def _nothing(model: nn.Module, left: dict[str, str]) -> str:
    name = type(model).__name__
    if left:
        return f"nothing in {name} was accelerated: " + "; ".join(f"{module}: {why}" for module, why in left.items())
    return (
        f"nothing in {name} can be accelerated: looked through {sum(1 for _ in model.modules())} modules for "
        f"{_SHARED_MODULE} of transformers and for modules that call its {' or '.join(_CORES)}, and found none"
    )


@functools.cache
def _subclass(original: type[nn.Module], way: _Way) -> type[nn.Module]:
    """Subclass that finds the attention in another place; only one for each class, so that models compile once."""
    members: dict[str, Any] = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": lambda self, protocol: (_blank, (original, way), self.__getstate__()),
        _ORIGINAL: original,
    }
    if way == "module":
        members["forward"] = _shared_forward
    elif way == "attribute":
        # A property of the class hides the module's attribute of the same name, which stays untouched.
        members[_ATTRIBUTE] = property(lambda self: _core_v2)
    else:
        members["forward"] = _with_operator(original.forward)
    return type(original.__name__, (original,), members)


def _blank(original: type[nn.Module], way: _Way) -> nn.Module:
    """Empty module that copying and unpickling fill with state."""
    cls = _subclass(original, way)  # type: ignore[arg-type] # a class has a hash
    return cls.__new__(cls)


def _with_operator(forward: Any) -> FunctionType:
    """Copy of a forward function whose global name of the attention is the operator; the file keeps its own name."""
    name = _global_core(forward)
    assert name is not None
    names = {**forward.__globals__, name: _CORES[name]}
    # torch.compile takes globals with the name of a file for those of the file, and would then guard the wrong ones.
    del names["__name__"]
    copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    functools.update_wrapper(copy, forward)
    return copy


def _global_core(forward: Any) -> str | None:
    called = (name for name in forward.__code__.co_names if _is_core(forward.__globals__.get(name)))
    return next(called, None)


def _is_core(candidate: object) -> bool:
    return isinstance(candidate, FunctionType) and candidate.__name__ in _CORES and _at_home(candidate)


def _at_home(function: FunctionType) -> bool:
    return (function.__module__ or "").startswith("transformers.models.")


# transformers calls the functions below, so names and order of their parameters are its own.


def _shared_forward(
    self: nn.Module,
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: _Sizes,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    return _core(value, value_spatial_shapes_list, sampling_locations, attention_weights)


def _core(value: Tensor, value_spatial_shapes: _Sizes, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    shapes = tuple((height, width) for height, width in value_spatial_shapes)
    return multi_scale_deformable_attention(value, shapes, sampling_locations, attention_weights).flatten(2)


def _core_v2(
    value: Tensor,
    value_spatial_shapes: _Sizes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points_list: Sequence[int],
    method: str = "default",
) -> Tensor:
    if method != "default":
        raise ValueError(f"method {method!r} does not run on this operator; restore the model before changing it")
    shapes = tuple((height, width) for height, width in value_spatial_shapes)
    result = multi_scale_deformable_attention(
        value, shapes, sampling_locations, attention_weights, num_points=tuple(num_points_list)
    )
    # In D-FINE and DEIMv2 no projection follows, so the type of the result matters: under autocast theirs is float32.
    dtype = torch.promote_types(value.dtype, attention_weights.dtype)
    if torch.is_autocast_enabled(value.device.type):
        dtype = torch.promote_types(dtype, torch.float32)
    return result.flatten(2).to(dtype)


_CORES: dict[str, Callable[..., Tensor]] = {
    "multi_scale_deformable_attention": _core,
    "multi_scale_deformable_attention_v2": _core_v2,
}
