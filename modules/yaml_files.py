"""YAML from files that people edit: plain values only, and every problem with its line."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

_MOST_DIGITS = 1000


def parse_yaml(text: str) -> Any:
    """What `text` says: dicts, lists, text, numbers, booleans, dates, None.

    Raises ValueError, naming the line where there is one, for anything else: bad syntax, tags, aliases, a key twice.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(line + (error.problem or "it is not YAML")) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # a tag that does not suit its value
        raise ValueError("a value is not what it says it is") from error


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader without aliases, of which a few lines can stand for gigabytes, and without repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse `*alias`, else as SafeLoader does."""
        if self.check_event(yaml.AliasEvent):
            raise ComposerError(None, None, "aliases (*name) are not allowed here", self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands there twice, else as SafeLoader does."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise ConstructorError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Refuse a number that Python would not write again, else as SafeLoader does."""
        if len(node.value) > _MOST_DIGITS:
            raise ConstructorError(None, None, f"a number has more than {_MOST_DIGITS} digits", node.start_mark)
        return int(super().construct_yaml_int(node))


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)
