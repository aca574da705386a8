"""Define the flags of programs that do not train."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from official_resnet.command_line.flags import MAX_INTEGER, PARTS, Number, define_flag, types_of
from official_resnet.training.config import flags_of

_Text = str | None
_Int = int | None
_Float = float | None


class Definer:
    """Define flags in a FlagValues: name, default, help text, short name, and bounds or choices."""

    def __init__(self, values: flags.FlagValues):
        self.values = values

    def _define(self, define: Callable, name: str, default: Any, text: str, short: _Text = None, **more: Any) -> None:
        define(name, default, help=text, short_name=short, flag_values=self.values, **more)

    string = functools.partialmethod(_define, flags.DEFINE_string)
    boolean = functools.partialmethod(_define, flags.DEFINE_boolean)
    names = functools.partialmethod(_define, flags.DEFINE_list)

    def enum(self, name: str, default: _Text, choices: Sequence[str], text: str, short: _Text = None) -> None:
        self._define(flags.DEFINE_enum, name, default, text, short, enum_values=choices)

    def integer(
        self, name: str, default: _Int, text: str, short: _Text = None, lower: _Int = None, upper: _Int = MAX_INTEGER
    ) -> None:
        self._define(flags.DEFINE_integer, name, default, text, short, lower_bound=lower, upper_bound=upper)

    def number(
        self, name: str, default: _Float, text: str, short: _Text = None, lower: _Float = None, upper: _Float = None
    ) -> None:
        self._define(functools.partial(flags.DEFINE, Number(lower, upper)), name, default, text, short)

    def known(self, flag: str, default: Any, **about: Any) -> None:
        """Define a flag that training programs also have; `about` replaces metadata of its field."""
        part = next(part for part in PARTS if flag in flags_of(part))
        field = flags_of(part)[flag]
        define_flag(self.values, flag, default, types_of(part)[flag], {**field.metadata, **about})
