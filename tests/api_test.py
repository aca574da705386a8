"""The names that `import official_resnet` offers: all of them, late, each with an example that runs."""

import doctest
import importlib
import subprocess
import sys

import numpy as np
import pytest
from fixtures import programs

import official_resnet as resnet

NAMES = """ResNetSpec residual_block residual_group build_model cifar_resnet imagenet_resnet mnist_resnet features train
evaluate TrainConfig load predict VARIANTS""".split()


@pytest.mark.parametrize('name', NAMES)
def test_each_name_is_offered_and_its_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for the examples that write
    if name in ('load', 'predict'):  # what the README's first command makes, but for the number of steps
        programs.succeed('cifar10_main --recipe=demo --max_train_steps=2 --nodownload --model_dir demo_model')
    value = getattr(resnet, name)
    assert name in dir(resnet)
    if name == 'VARIANTS':
        return
    names = {'resnet': resnet, 'np': np} | vars(importlib.import_module(value.__module__))
    (test,) = [
        test for test in doctest.DocTestFinder(recurse=False).find(value, name, globs=names) if test.name == name
    ]
    assert test.examples, f'{name} has no example'
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    assert runner.run(test).failed == 0


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match='no attribute .residual_blok'):
        resnet.residual_blok  # noqa: B018


def test_importing_the_package_imports_no_tensorflow():
    code = (
        'import sys, official_resnet; dir(official_resnet); print("tensorflow" in sys.modules, "numpy" in sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['False', 'False']
