"""Parse YAML according to the schema, and write YAML that every parser reads alike.

The type of an unquoted scalar depends on the schema: a class named `no`, `1e3` or `007` stays text.
"""

import re
from typing import Any

import yaml

from ssd.config.entries import Entry, child, is_path, is_section, is_text, section_in

MAX_DEPTH = 50  # nesting of lists and mappings; far more than the schema has
ESCAPED = "in double quotes a backslash starts an escape sequence; write Windows paths with / or in single quotes"
MAX_VALUES = 100_000  # in one file; more than any run needs, but stops aliases that expand exponentially
NULL, BOOL, INT, FLOAT, STR, MERGE, MAP, SEQ = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "merge", "map", "seq")
)


def parse_yaml(text: str, entry: Entry | None) -> Any:
    """Parse YAML text into plain values; None if it is empty.

    Raises:
        yaml.YAMLError: the text is not valid YAML.
    """
    return _parse(_Loader(text), entry)


def _parse(loader: "_Loader", entry: Entry | None) -> Any:
    try:
        node = loader.get_single_node()
        return None if node is None else loader.plain(node, entry)
    finally:
        loader.dispose()


def parse_as_written(text: str) -> Any:
    """Parse YAML text that is not a configuration, with every scalar as text: `no` is not a boolean, 007 not a number.

    Raises:
        yaml.YAMLError: the text is not valid YAML.
    """
    return _parse(_WrittenLoader(text), None)


def is_plain_text(text: str) -> bool:
    """Return whether an unquoted scalar is text, or a number that can serve as text."""
    return _Loader("").resolve(yaml.ScalarNode, text, (True, False)) not in (NULL, BOOL)


def dump_yaml(values: object, in_line: bool = False) -> str:
    """Write plain values as YAML that any parser reads back unchanged; with `in_line`, on one line."""
    text = yaml.dump(values, Dumper=_Dumper, default_flow_style=in_line, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip() if in_line else text


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also quotes text that only YAML 1.2 reads as a number, such as `1e3`."""


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalar types of YAML 1.2, plus `yes`, `no`, `on` and `off` from 1.1."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.values_left = MAX_VALUES
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError("nested too deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def plain(self, node: yaml.Node, entry: Entry | None, above: tuple[yaml.Node, ...] = ()) -> Any:
        """Convert a node and everything below it to the types of its schema entry.

        Raises:
            yaml.YAMLError: a node is not a plain value, the node contains itself, or it exceeds a limit.
        """
        self.values_left -= 1
        if self.values_left < 0:
            raise _at(node, f"more than {MAX_VALUES:,} values; check for aliases (*name) of aliases")
        if node in above:
            raise _at(node, "an alias refers to a node that contains it")
        if len(above) > MAX_DEPTH:  # through aliases
            raise _at(node, "nested too deep")
        above = (*above, node)
        if isinstance(node, yaml.MappingNode) and node.tag == MAP:
            return self.mapping(node, entry, above)
        if isinstance(node, yaml.SequenceNode) and node.tag == SEQ:
            of_items = child(entry, 0)
            names = is_text(of_items)  # then every word is a name, even `null`
            return [each.value if names and _is_word(each) else self.plain(each, of_items, above) for each in node.value]
        if isinstance(node, yaml.ScalarNode):
            may_be_section = section_in(entry) and not node.value  # an explicit null means null
            if node.tag == NULL and (is_section(entry) or may_be_section):  # all entries are commented out
                return {}
            if is_path(entry) and _has_escape(node):
                raise _at(node, ESCAPED)
            return _scalar(node, is_text(entry))
        raise _at(node, f"the tag {node.tag} is not supported")

    def mapping(self, node: yaml.MappingNode, entry: Entry | None, above: tuple[yaml.Node, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise _at(key_node, "a key must be a name, not a list or a mapping")
            if key_node.tag == MERGE:
                parts = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for part in reversed(parts):
                    if not isinstance(part, yaml.MappingNode):
                        raise _at(part, "<<: expected a mapping or a list of mappings")
                    merged |= self.plain(part, entry, above)
            elif key in values:
                raise _at(key_node, f"duplicate key {key!r}")
            else:
                values[key] = self.plain(value_node, child(entry, key), above)
        return merged | values


class _WrittenLoader(_Loader):
    """The same parser, with every unquoted scalar as text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


def _has_escape(node: yaml.ScalarNode) -> bool:
    """Return whether the scalar has an escape sequence, as in "C:\\new", where YAML reads a line break."""
    written = (node.start_mark.buffer or "")[node.start_mark.pointer : node.end_mark.pointer]
    return node.style == '"' and re.search(r"\\[^\\\"/xuU]", re.sub(r"\\\\", "", written)) is not None


_DECIMAL = r"[-+]?[0-9][0-9_]*"
_FLOAT = r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
for _tag, _pattern, _first in (
    (NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (BOOL, r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", list("yYnNtTfFoO")),
    (INT, _DECIMAL, list("-+0123456789")),
    (FLOAT, _FLOAT, list("-+.0123456789")),
    (MERGE, "<<", ["<"]),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)
_Dumper.add_implicit_resolver(FLOAT, re.compile(rf"^(?:{_FLOAT}|0o[0-7]+)$"), list("-+.0123456789"))


def _at(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _is_word(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.value != "" and node.tag in (NULL, BOOL, INT, FLOAT, STR, MERGE)


def _scalar(node: yaml.ScalarNode, is_text: bool) -> Any:
    """Convert a scalar; a number stays text if the schema expects text."""
    text, tag = node.value, node.tag
    if tag == NULL:
        return None
    if tag == BOOL:
        return {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}.get(text.lower(), text)
    if tag in (STR, MERGE) or (tag in (INT, FLOAT) and is_text):
        return text
    if tag not in (INT, FLOAT):
        raise _at(node, f"the tag {tag} is not supported")
    try:
        digits = text.replace("_", "").lower()
        return int(digits) if tag == INT else float(digits.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:  # tagged as a number but not one, or with too many digits for Python
        return text
