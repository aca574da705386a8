"""Imports go one way, module names shadow nothing, and `import official_resnet` is free."""

import ast
import pathlib
import subprocess
import sys

import pytest

import official_resnet

PACKAGE = pathlib.Path(official_resnet.__file__).parent
# A module may import those of the rows above it, and of its own row where it says so.
LAYERS = [
    ['errors'],
    ['workers', 'tfrecords', 'jpeg', 'tfds_builders'],
    [
        'records',
        'synthetic',
        'image_folder',
        'layers',
        'optimizers',
        'callbacks',
        'download',
        'recipes',
        'devices',
        'checkpoints',
        'benchmark_torch',
    ],
    ['preprocessing', 'resnet_model'],
    ['encoded', 'train_config', 'cards', 'grad_cam', 'resnet_table', 'tutorial_resnet', 'steps'],
    ['input_pipeline'],
    ['evaluation', 'prediction', 'transfer', 'feature_cache'],
    ['resnet_run_loop'],
    ['resnet_flags', 'plots', 'gradient_chain', 'net_gradients'],
    ['train_program', 'benchmark_inference', 'benchmark_input', 'benchmark_workers', 'experiment_program', 'runs'],
    ['benchmark_worker'],
    ['MAIN'],
]
# without keras
ALONE = {
    'tfrecords',
    'jpeg',
    'encoded',
    'records',
    'image_folder',
    'preprocessing',
    'input_pipeline',
    'synthetic',
    'download',
    'recipes',
    'errors',
}
# What the tests of others run: benchmark_test, input_pipeline_test, mains_test, prediction_test, resnet_model_test.
UNTESTED = {
    '__init__',
    'steps',
    'errors',
    'recipes',
    'devices',
    'train_program',
    'benchmark_worker',
    'benchmark_inference',
    'benchmark_input',
    'benchmark_torch',
    'cards',
    'resnet_table',
    'tfds_builders',
}
RANK = {name: i for i, names in enumerate(LAYERS) for name in names}


def is_main(name):
    return name.endswith(('_main', '_download_and_extract'))


def imports(path):
    """(package modules, top-level packages) imported anywhere in a file but where it runs as a program."""
    ours, others = set(), set()
    body = [
        node
        for node in ast.parse(path.read_text()).body
        if not (isinstance(node, ast.If) and '__main__' in ast.unparse(node.test))
    ]
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.ImportFrom):
            if node.module in ('official_resnet', 'official_resnet.experiments'):
                ours |= {alias.name for alias in node.names}
            elif node.module.startswith('official_resnet.'):
                ours.add(node.module.split('.')[1])
            else:
                others.add(node.module.split('.')[0])
            assert node.level == 0, f'{path.name}: relative import'
        elif isinstance(node, ast.Import):
            others |= {alias.name.split('.')[0] for alias in node.names}
    return ours, others


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda path: path.stem)
def test_imports_go_one_way(path):
    name = path.stem
    ours, others = imports(path)
    if name != '__init__':
        rank = RANK['MAIN' if is_main(name) else name]
        for imported in ours:
            assert not is_main(imported), f'{name} imports the program {imported}'
            assert RANK[imported] < rank, f'{name} imports {imported}, which is not below it'
    if name in ALONE:
        assert 'keras' not in others
    if path.name != 'plots.py':
        assert 'matplotlib' not in others


def test_every_module_has_a_test_and_a_place():
    tests = {path.stem.removesuffix('_test') for path in pathlib.Path(__file__).parent.glob('*_test.py')}
    for path in PACKAGE.glob('*.py'):
        if path.stem not in UNTESTED and not is_main(path.stem):
            assert path.stem in tests, f'{path.name} has no test file'


def test_no_module_hides_another(tmp_path):
    """Running a script puts its folder first on sys.path; none of ours may have a dependency's name."""
    names = [path.stem for path in PACKAGE.glob('*.py') if path.stem != '__init__']
    code = f'import importlib.util, sys; print([n for n in {names} if importlib.util.find_spec(n)])'
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'
    assert not set(names) & set(sys.stdlib_module_names)


def test_importing_the_package_imports_nothing(tmp_path):
    code = (
        'import sys; import official_resnet, official_resnet.cifar10_main, official_resnet.resnet_flags; '
        'print(sorted({"tensorflow", "keras", "numpy"} & sys.modules.keys())); '
        'from absl import flags; print("data_dir" in flags.FLAGS)'
    )
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split('\n')[:2] == ['[]', 'False']
