"""The commands that an installation makes of the programs: they exist, and they speak under their own names."""

import json
import pathlib
import re
import runpy
import sys

import pytest
import setuptools
from fixtures import programs

ROOT = pathlib.Path(__file__).parents[2]
CALL = """
import contextlib, importlib.metadata, io, json, sys
for name, value in json.loads(sys.argv[1]).items():
    run, answers = importlib.metadata.EntryPoint(name, value, 'console_scripts').load(), []
    for flag in ('--help', '--no_such_flag'):
        sys.argv = [f'/somewhere/bin/{name}', flag]
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                run()
            except SystemExit as end:
                answers.append([end.code, out.getvalue(), err.getvalue()])
    print(json.dumps([*answers, sorted({'tensorflow', 'keras'} & sys.modules.keys())]))
"""


@pytest.fixture(scope='module')
def commands():
    """{name of a command: 'module:function'}, as setup.py has them."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(setuptools, 'setup', lambda **options: found.update(options))
        runpy.run_path('setup.py')
    return dict(line.split(' = ') for line in found['entry_points']['console_scripts'])


def test_each_program_of_the_readme_has_a_command(commands):
    names = {'cifar10', 'imagenet', 'images', 'predict', 'report', 'export', 'convert'}
    assert commands.keys() == {f'resnet-{name}' for name in names}
    for text in (ROOT / 'docs' / 'index.md', ROOT / 'README.md'):
        assert all(f'`{name}`' in text.read_text(encoding='utf-8') for name in commands)


def test_help_and_mistakes_name_the_command_and_need_no_tensorflow(commands, tmp_path):
    code, out, err = programs.run([sys.executable, '-c', CALL, json.dumps(commands)], cwd=tmp_path)
    assert code == 0, err
    for name, line in zip(commands, out.splitlines(), strict=True):
        (code, text, said), mistake, imported = json.loads(line)
        assert (code, said, imported) == (0, '', [])
        assert f'\n    {name} ' in text and not re.search(r'python \S+\.py', text)
        assert max(map(len, text.splitlines())) <= 80
        assert mistake[:2] == [1, ''] and mistake[2].startswith(f'{name}: there is no flag --no_such_flag')
