"""Flags of programs that do not train."""

from typing import Any

from absl import flags

from official_resnet.command_line.flags import MAX_INTEGER, PARTS, Number, define_flag, types_of
from official_resnet.training.config import flags_of


class Definer:
    """absl's DEFINE functions with the flag set filled in."""

    def __init__(self, values: flags.FlagValues):
        self.values = values

    def string(self, name, default, text, short=None):
        flags.DEFINE_string(name, default, text, short_name=short, flag_values=self.values)

    def boolean(self, name, default, text, short=None):
        flags.DEFINE_boolean(name, default, text, short_name=short, flag_values=self.values)

    def enum(self, name, default, choices, text, short=None):
        flags.DEFINE_enum(name, default, choices, text, short_name=short, flag_values=self.values)

    def integer(self, name, default, text, short=None, lower=None, upper=MAX_INTEGER):
        flags.DEFINE_integer(name, default, text, lower, upper, short_name=short, flag_values=self.values)

    def number(self, name, default, text, short=None, lower=None, upper=None):
        flags.DEFINE(Number(lower, upper), name, default, text, short_name=short, flag_values=self.values)

    def names(self, name, default, text, short=None):
        flags.DEFINE_list(name, default, text, short_name=short, flag_values=self.values)

    def known(self, flag: str, default: Any, **about: Any) -> None:
        """Define a flag that training programs have, too; `about` differs of the metadata of its field."""
        part = next(part for part in PARTS if flag in flags_of(part))
        field = flags_of(part)[flag]
        define_flag(self.values, flag, default, types_of(part)[flag], {**field.metadata, **about})
