"""What every benchmark tells beside its figures: the machine, and all of it in a file."""

import importlib.metadata
import importlib.util
import os
import sys

from official_resnet import files
from official_resnet.errors import UserError
from official_resnet.training import devices


def check_output(path: str | None) -> str:
    """Return the path in --output_json, '' without one; raise UserError if no file can be there."""
    path = os.path.expanduser(path or '')
    if path and (os.path.isdir(path) or not os.path.isdir(os.path.dirname(path) or '.')):
        raise UserError(f"output_json '{path}' is no file in a folder that is there; pass another")
    return path


def write(path: str, flags: dict, machine: str, **figures) -> None:
    """Write figures as JSON, with the flags and the machine they are of; without a path nothing."""
    if path:
        files.write_json(path, {'flags': flags, 'machine': machine, **figures})


def describe_machine() -> str:
    """Return one line: CPU, cores, memory, versions."""
    versions = [
        f'{name} {importlib.metadata.version(name)}'
        for name in ('tensorflow', 'keras', 'numpy', 'torch')
        if importlib.util.find_spec(name)
    ]
    gibibytes = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    return (
        f'{devices.cpu_model()}, {os.cpu_count()} cores, {gibibytes:.0f} GiB; Python {sys.version.split()[0]}, '
        f'{", ".join(versions)}'
    )
