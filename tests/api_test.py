"""The names that `import official_resnet` offers, all of them late, and the examples in the package's docstrings."""

import doctest
import importlib
import pathlib
import shutil

import numpy as np
import pytest
from fixtures.networks import save_network

import official_resnet as resnet

NAMES = """ResNetSpec residual_block residual_group build_model cifar_resnet imagenet_resnet mnist_resnet features train
evaluate TrainConfig load predict""".split()
PACKAGE = pathlib.Path(resnet.__file__).parent
PATHS = (path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob('*.py') if '\n    >>> ' in path.read_text())
MODULES = sorted('.'.join(path.with_suffix('').parts) for path in PATHS)


def test_each_name_is_offered_with_an_example():
    assert {*NAMES, 'VARIANTS'} <= set(dir(resnet)) and resnet.VARIANTS
    assert [name for name in NAMES if '>>> ' not in getattr(resnet, name).__doc__] == []
    with pytest.raises(AttributeError, match='no attribute .residual_blok'):
        resnet.residual_blok  # noqa: B018


@pytest.mark.parametrize('name', MODULES)
def test_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for the examples that write
    (tmp_path / 'demo_model').mkdir()  # which the README's first command makes
    save_network(tmp_path / 'demo_model', '0123456789', (32, 32, 3))
    module, flags = importlib.import_module(name), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
    for example in doctest.DocTestFinder().find(module, globs={'resnet': resnet, 'np': np} | vars(module)):
        runner.run(example)
        shutil.rmtree('run', ignore_errors=True)  # a model_dir, in which the next training would go on
    assert runner.tries and not runner.failures
