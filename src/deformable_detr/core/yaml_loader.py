"""Reading of YAML that strangers made: plain values only, no key twice, and merges of a limited size.

PyYAML's own safe loader copies what `<<` merges, so that ten lines of aliases to aliases fill the memory.
"""

from typing import Any

import yaml

from deformable_detr.core.reading import shallow
from deformable_detr.core.short_text import one_line

_MOST_MERGED = 10_000
_MERGE = "tag:yaml.org,2002:merge"


class YamlError(ValueError):
    """Error in a YAML text; the message is one line.

    Args:
        reason: what is wrong.
        place: "line L, column C", from 1; empty where it is not known.
    """

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(reason)
        self.place = place


class _PlainLoader(yaml.SafeLoader):
    """YAML loader of plain values, which refuses a key that appears twice and merges that multiply."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_merged = 0

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Mapping of the text, before anything is merged into it, after a check for repeated keys."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {one_line(key.value)!r} appears twice", key.start_mark
                )
            seen.add(key.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put merged keys into a mapping, as the base class does, after a check of how many they are."""
        for key, value in node.value:
            if key.tag != _MERGE:
                continue
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(source, yaml.MappingNode):
                    self.flatten_mapping(source)  # afterwards it holds all of its keys, and merges nothing itself
                    self._num_merged += len(source.value)
                if self._num_merged > _MOST_MERGED:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"merges (<<) make more than {_MOST_MERGED} keys: write them out", node.start_mark
                    )
        super().flatten_mapping(node)


def yaml_value(text: str) -> Any:
    """Value of a YAML text: dicts, lists, text, numbers, truth values, dates and None.

    Raises:
        YamlError: it is no YAML, is nested more than 100 deep, has a key twice, or merges without end.
    """
    try:
        value = yaml.load(text, Loader=_PlainLoader)
        if not shallow(value):
            raise YamlError("its values are nested too deeply")
        return value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise YamlError(f"not YAML: {one_line(error.problem or error.context)}", place) from error
    except YamlError:
        raise
    except RecursionError:
        pass  # said below, without a traceback of a thousand frames as its cause
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        # The other errors come from PyYAML's converters, for text such as `!!int x`.
        raise YamlError(f"not usable YAML: {one_line(error)}") from error
    raise YamlError("its values are nested too deeply")
