"""How much of the project a reader of a CIFAR-10 run meets, and how much a run imports: see CONTRIBUTING.md."""

import ast
import json
import pathlib
import re
import sys

from fixtures import programs

import official_resnet

PACKAGE = pathlib.Path(official_resnet.__file__).parent
ROOT = PACKAGE.parent
WALK = re.compile(r'^\| \d+ \| `(\S+\.py)` \| (.*?) \|', re.MULTILINE)  # | 1 | `path` | `name`, `name` | what happens |
MAX_FILES, MAX_LINES = 12, 2600  # of the walk
# Of what a run imports, __init__.py not counted; the lines are counted with those of the program itself.
MAX_INPUT_LINES = 660  # of these in inputs/
MAX_MODULES, MAX_IMPORTED_LINES = 23, 4450  # about 220 of them are settings of recipes: fields, their texts, numbers
BEHIND_DOORS = set(
    """
    training/transfer.py training/feature_cache.py training/workers.py training/meeting.py command_line/more_logging.py
    inference/predict.py inference/export.py inference/exporters.py inference/rewrite.py reports/figures.py
    """.split()
)
RUN = """
import json, runpy, sys
sys.argv = ['cifar10_main.py', *sys.argv[1:]]
try:
    runpy.run_module('official_resnet.cifar10_main', run_name='__main__')
finally:
    names = [name for name in sys.modules if name.startswith('official_resnet.')]
    print(json.dumps([sys.modules[name].__file__ for name in names]))
"""


def count_lines(paths):
    return sum(len(path.read_text(encoding='utf-8').splitlines()) for path in paths)


def names_in(path):
    """The functions, classes and methods of a file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding='utf-8')))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_the_walk_names_what_exists_and_is_short():
    rows = WALK.findall((ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8'))
    paths = {ROOT / path for path, _ in rows}
    assert len(rows) >= 6, 'CONTRIBUTING.md has no table of the walk'
    for path, names in rows:
        for name in re.findall(r'`([\w.]+)`', names):
            assert names_in(ROOT / path).issuperset(name.split('.')), f'{path} has no {name}'
    assert len(paths) <= MAX_FILES and count_lines(paths) <= MAX_LINES, (len(paths), count_lines(paths))


def test_a_cifar_training_imports_little_of_ours(cifar_dir, tmp_path):
    flags = ['--data_dir', cifar_dir, '--model_dir', tmp_path, '-rs', '8', '-bs', '16', '--max_train_steps', '4']
    flags += ['--bn_momentum', '0.1']  # for which 4 steps are enough
    code, out, err = programs.run([sys.executable, '-c', RUN, *map(str, flags)])
    assert code == 0, err
    paths = {pathlib.Path(path) for path in json.loads(out.splitlines()[-1])}
    paths = {path for path in paths if path.name != '__init__.py'}
    assert PACKAGE / 'resnet_run_loop.py' in paths and (tmp_path / 'model.keras').is_file()
    names = {str(path.relative_to(PACKAGE)) for path in paths}
    assert {'training/step.py', 'resnet_model.py'} <= names and not names & BEHIND_DOORS
    read = [path for path in paths if path.parent.name == 'inputs']
    assert {path.stem for path in read} == {
        'datasets',
        'in_memory',
        'cifar',
        'augment_options',
        'augmentation',
        'normalization',
    }
    assert count_lines(read) <= MAX_INPUT_LINES
    lines = count_lines([*paths, PACKAGE / 'cifar10_main.py'])
    listed = sorted(f'{count_lines([path])} {path.relative_to(PACKAGE)}' for path in paths)
    assert len(paths) <= MAX_MODULES and lines <= MAX_IMPORTED_LINES, f'{len(paths)} modules, {lines} lines: {listed}'
