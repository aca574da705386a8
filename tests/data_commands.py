"""The commands in data/: scripts of no package, loaded by their paths."""

import importlib.util
import pathlib

FOLDER = pathlib.Path(__file__).parents[1] / 'data'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))


def load(name):
    """Return a command as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
