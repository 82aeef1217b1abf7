"""YAML that people write by hand, read so that nothing in it is executed, and nothing grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 2**20
MAX_VALUES = 100_000
"""Of a file whose references are written out; some lines can stand for billions."""


class YamlError(ValueError):
    """A file is not what it should be; the message says where in one line."""


def read_yaml(path: Path) -> Any:
    """The content of a file.

    Raises: FileNotFoundError, or YamlError if it is no YAML, too large, or refers to itself.
    """
    if path.stat().st_size > MAX_BYTES:
        raise YamlError(f"{path.name}: more than {MAX_BYTES} bytes, expected parameters")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise YamlError(f"{path.name}: not text in UTF-8 at byte {error.start}; save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise YamlError(f"{path.name}: not valid YAML{place}; check indentation and brackets") from None
    except RecursionError:
        raise YamlError(f"{path.name}: nested too deeply; check brackets") from None
    # A date that there is not, say.
    except (ValueError, OverflowError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise YamlError(f"{path.name}: a value cannot be read ({reason}); put it in quotes") from None
    if _count(data, {}) > MAX_VALUES:
        raise YamlError(f"{path.name}: stands for more than {MAX_VALUES} values; write out what it refers to")
    return data


def _count(data: Any, known: dict[int, float]) -> float:
    """Values that the data stands for; infinite where it holds itself."""
    if not isinstance(data, dict | list | set):
        return 1
    if id(data) not in known:
        known[id(data)] = float("inf")
        inside = [*data, *data.values()] if isinstance(data, dict) else data
        known[id(data)] = 1 + sum(_count(item, known) for item in inside)
    return known[id(data)]
