"""Flags of programs that do not train."""

import functools
from typing import Any

from absl import flags

from official_resnet.command_line.flags import MAX_INTEGER, PARTS, Number, define_flag, types_of
from official_resnet.training.config import flags_of


class Definer:
    """absl's DEFINE functions with the flag set filled in."""

    def __init__(self, values: flags.FlagValues):
        self.values = values

    def _define(self, define, name, default, text, short=None, **more):
        define(name, default, help=text, short_name=short, flag_values=self.values, **more)

    string = functools.partialmethod(_define, flags.DEFINE_string)
    boolean = functools.partialmethod(_define, flags.DEFINE_boolean)
    names = functools.partialmethod(_define, flags.DEFINE_list)

    def enum(self, name, default, choices, text, short=None):
        self._define(flags.DEFINE_enum, name, default, text, short, enum_values=choices)

    def integer(self, name, default, text, short=None, lower=None, upper=MAX_INTEGER):
        self._define(flags.DEFINE_integer, name, default, text, short, lower_bound=lower, upper_bound=upper)

    def number(self, name, default, text, short=None, lower=None, upper=None):
        self._define(functools.partial(flags.DEFINE, Number(lower, upper)), name, default, text, short)

    def known(self, flag: str, default: Any, **about: Any) -> None:
        """Define a flag that training programs have, too; `about` differs of the metadata of its field."""
        part = next(part for part in PARTS if flag in flags_of(part))
        field = flags_of(part)[flag]
        define_flag(self.values, flag, default, types_of(part)[flag], {**field.metadata, **about})
