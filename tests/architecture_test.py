"""Imports go one way, module names shadow nothing, and `import official_resnet` is free."""

import ast
import pathlib
import re
import sys

import pytest
from fixtures import programs

import official_resnet

PACKAGE = pathlib.Path(official_resnet.__file__).parent
ROOT = PACKAGE.parent
# A room may import from itself and from those before it. A module of the package itself is a room of its own.
ROOMS = """
    errors bounds remedies files folders damage inputs building resnet_spec layers more_layers
    channel_attention resnet_model resnet_variants checkpoints inference checkpoints_tools weights training
    resnet_run_loop reports command_line experiments PROGRAM
    """.split()
NO_KERAS = ROOMS[: ROOMS.index('building') + 1] + ['resnet_spec']  # rooms that never import it
# What a program reads before it starts TensorFlow. An import inside a function is late, and does not count.
NO_TENSORFLOW = """
    errors files damage resnet_spec resnet_variants checkpoints training.config training.recipes training.devices
    training.workers inputs.datasets inputs.images inputs.views inputs.jpeg inputs.tfrecords inputs.download
    inputs.shard_files inference.network_files inference.formats inference.hub_card inference.answers
    inference.sorted_copies inference.spreadsheets command_line.program command_line.flags command_line.train_program
    weights.pretrained
    command_line.build_program building.shards building.beam reports.evaluate reports.report
    experiments.architecture_table
    experiments.degradation_main experiments.gradient_flow_main experiments.shortcuts_main experiments.transfer_main
    """.split()
PROGRAMS = ('_main', '_download_and_extract', 'read_ckpt')  # how a program's name ends
COMMANDS = sorted((ROOT / 'data').glob('*.py'))
FILES = sorted([*PACKAGE.rglob('*.py'), *(ROOT / 'checkpoints_tools').glob('*.py'), *COMMANDS])


def dotted(path):
    """'training.config' of a file of the package, 'checkpoints_tools.convert' of one beside it."""
    base = PACKAGE if path.is_relative_to(PACKAGE) else ROOT
    return '.'.join(path.relative_to(base).with_suffix('').parts)


def room_of(name):
    """The room of a dotted name."""
    if name.endswith(PROGRAMS) or name.startswith('data.'):
        return 'PROGRAM'
    # The block of some networks is built from the parts of resnet_model, which imports it late: one room, two files.
    return name.split('.')[0].replace('pooled_block', 'resnet_model')


def imports(path, is_late=True):
    """Dotted names that a file imports; without `is_late` only at its top. What runs as a program is left out."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and '__main__' in ast.unparse(node.test))]
    for node in ast.walk(tree) if is_late else tree.body:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path.name}: relative import'
            for alias in node.names:
                folder = ROOT.joinpath(*node.module.split('.'))
                is_module = (folder / f'{alias.name}.py').is_file() or (folder / alias.name).is_dir()
                yield f'{node.module}.{alias.name}' if is_module else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize('path', FILES, ids=dotted)
def test_imports_go_one_way(path):
    room = room_of(dotted(path))
    for name in imports(path):
        top, _, below = name.partition('.')
        assert top not in ('benchmarks', 'tests', 'data', *(command.stem for command in COMMANDS))
        if (top == 'official_resnet' and below or top == 'checkpoints_tools') and room != '__init__':
            other = room_of(below if top == 'official_resnet' else name)
            assert other != 'PROGRAM', f'{path} imports the program {name}'
            assert ROOMS.index(other) <= ROOMS.index(room), f'{path} imports {name}, which is not below it'
            assert other != 'building' or room in ('building', 'command_line', 'PROGRAM')
        assert top != 'keras' or room not in NO_KERAS, f'{path} imports Keras'
        assert top != 'matplotlib' or dotted(path) == 'reports.figures'
        is_no_run = room == 'experiments' or dotted(path) in ('reports.report', 'reports.report_page')
        assert below != 'reports.figures' or is_no_run, f'{path}: a run draws in another process'
        assert below != 'reports.report_page' or room == 'PROGRAM'


def test_nothing_changes_the_path_of_imports():
    files = [*FILES, *(ROOT / 'benchmarks').rglob('*.py'), *(ROOT / 'tests').rglob('*_test.py')]
    text = 'sys.' + 'path'  # which also stands in this file
    assert [path for path in files if f'{text}.' in path.read_text() or f'{text}[' in path.read_text()] == []


def test_only_files_and_folders_rename():
    """They flush what gets a final name, and the name."""
    rename = re.compile(r'\bos\.(replace|rename)\(|(?<!FileSystems)\.rename\(|shutil\.move\(')
    assert {dotted(path) for path in FILES if rename.search(path.read_text())} <= {'files', 'folders'}


def test_only_spreadsheets_writes_csv():
    """It knows which texts a spreadsheet would run."""
    writer = re.compile(r'\bcsv\.(writer|DictWriter)\(')
    assert {dotted(path) for path in FILES if writer.search(path.read_text())} == {'inference.spreadsheets'}


@pytest.mark.parametrize('name', NO_TENSORFLOW)
def test_what_a_program_reads_first_imports_no_tensorflow(name):
    seen, todo = set(), [name]
    while todo:
        name = todo.pop()
        seen.add(name)
        path = PACKAGE.joinpath(*name.split('.')).with_suffix('.py')
        for imported in imports(path, is_late=False) if path.is_file() else ():
            assert imported.split('.')[0] not in ('tensorflow', 'keras'), f'{name} imports {imported}'
            if imported.startswith('official_resnet.') and imported.removeprefix('official_resnet.') not in seen:
                todo.append(imported.removeprefix('official_resnet.'))


def test_no_module_hides_another(tmp_path):
    """Running a script puts its folder first on sys.path; none of ours may have a dependency's name."""
    folders = (PACKAGE, PACKAGE / 'experiments', ROOT / 'checkpoints_tools', ROOT / 'data')
    names = [path.stem for folder in folders for path in folder.iterdir() if path.suffix == '.py' or path.is_dir()]
    names = [name for name in names if not name.startswith('__')]
    code = f'import importlib.util, sys; print([n for n in {names} if importlib.util.find_spec(n)])'
    assert programs.run([sys.executable, '-P', '-c', code], cwd=tmp_path) == (0, '[]\n', '')
    assert not set(names) & set(sys.stdlib_module_names)


def test_importing_the_package_imports_nothing(tmp_path):
    code = (
        'import sys; import official_resnet, official_resnet.cifar10_main, official_resnet.command_line.flags; '
        'dir(official_resnet); print(sorted({"tensorflow", "keras", "numpy"} & sys.modules.keys())); '
        'from absl import flags; print("data_dir" in flags.FLAGS)'
    )
    assert programs.run([sys.executable, '-c', code], cwd=tmp_path) == (0, '[]\nFalse\n', '')


@pytest.mark.parametrize('path', [path for path in FILES if room_of(dotted(path)) == 'PROGRAM'], ids=dotted)
def test_a_program_without_an_installation_says_so(path, tmp_path):
    """Started by its path by a Python that has no package but the standard library's."""
    code, out, err = programs.run([sys.executable, '-S', '-E', path], cwd=tmp_path)
    assert code == 1 and out == '' and err.count('\n') == 1
    assert "run 'pip install .' in the folder of the repository" in err
