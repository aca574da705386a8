"""Programs whose standard streams are closed or full."""

import io
import logging
import subprocess
import sys

import pytest
from absl import flags as absl_flags
from fixtures.batches import message_of

from official_resnet import checkpoints, cifar10_main, damage, files, folders
from official_resnet.command_line import build_program, flags, more_logging
from official_resnet.command_line.program import run_program
from official_resnet.errors import Interrupted, UserError
from official_resnet.inputs import download
from official_resnet.training.config import MachineConfig, TrainConfig

PROGRAM = """
import sys, logging
from absl import flags
from official_resnet.command_line.program import run_program

def body(values):
    print('a word')
    print('a warning', file=sys.stderr)
    logging.getLogger('official_resnet').info('a log')
    with open(values.file, 'w') as file:
        file.write(str(file.fileno()))

values = flags.FlagValues()
flags.DEFINE_string('file', None, 'A file.', flag_values=values)
sys.exit(run_program(['x.py', *sys.argv[1:]], 'doc', values, body))
"""
CLOSED = ['<&-', '>&-', '2>&-', '>&- 2>&-', '<&- >&- 2>&-']
FULL = ['>/dev/full', '2>/dev/full', '>/dev/full 2>/dev/full']


def run(redirections, *args):
    """Return (exit code, standard output, standard error) of PROGRAM."""
    command = ['bash', '-c', f'exec "$@" {redirections}', 'bash', sys.executable, '-c', PROGRAM, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize('redirections', CLOSED)
def test_a_closed_stream_is_no_error_and_no_file_takes_its_place(redirections, tmp_path):
    code, out, err = run(redirections, '--file', tmp_path / 'a')
    assert code == 0
    assert out == ('' if '>&-' in redirections.replace('2>&-', '') else 'a word\na log\n')
    assert err == ('' if '2>&-' in redirections else 'a warning\n')
    assert int((tmp_path / 'a').read_text()) > 2
    code, _, err = run(redirections, '--nope')
    assert code == 1 and err == (
        '' if '2>&-' in redirections else 'x: there is no flag --nope (--help lists the flags)\n'
    )


@pytest.mark.parametrize(
    'flag,error,expected',
    [
        ('--clean', Interrupted(2, 'saved; run the same command again to continue'), 'without --clean to continue'),
        ('--noclean', Interrupted(2, 'saved; run the same command again to continue'), 'without --clean'),  # a worker
        ('--seed=1', Interrupted(2, 'saved; run the same command again to continue'), 'command again to continue'),
        ('--clean', UserError(f'full; free some space{checkpoints.AGAIN}'), 'without --clean; it continues'),
        ('--clean', UserError('no file; put it back and run the same command again'), 'same command again'),
        ('--clean', KeyboardInterrupt(), 'same command again'),  # nothing has been deleted
    ],
)
def test_who_continues_after_clean_leaves_it_out(flag, error, expected, capsys):
    def body(values):
        raise error

    values = flags.define(cifar10_main.PROGRAM)
    assert run_program(['x.py', flag], '', values, body) in (1, 130)
    assert expected in ''.join(capsys.readouterr())


@pytest.mark.parametrize('redirections', FULL)
@pytest.mark.parametrize('args', [['--help'], ['--file', 'a']])
def test_a_full_output_is_one_line(redirections, args, tmp_path):
    args = [str(tmp_path / 'a') if arg == 'a' else arg for arg in args]
    code, _, err = run(redirections, *args)
    if '2>' in redirections:
        assert code in (0, 1) and err == ''
    else:
        assert code == 1 and err.endswith(
            'x: standard output cannot be written: [Errno 28] No space left on device; free some space and run the '
            'same command again\n'
        )
        assert err.replace('a warning\n', '').count('\n') == 1


def test_a_pipe_gets_a_line_as_soon_as_it_is_printed(monkeypatch):
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(io.BufferedWriter(pipe)))
    seen = []

    def body(values):
        print('a word')
        seen.append(pipe.getvalue())

    assert run_program(['x.py'], '', absl_flags.FlagValues(), body) == 0
    assert seen == [b'a word\n']


def _log():
    logging.getLogger('official_resnet').info('a word')


@pytest.mark.parametrize('say', [_log, lambda: build_program.log('a word')], ids=['log', 'build'])
@pytest.mark.parametrize(
    'context',
    [
        lambda folder: files.write_errors(f"'{folder}'", ''),
        lambda folder: files.replacing(folder / 'a'),
        lambda folder: download._disk_errors(folder, 3),
        lambda folder: damage.reported(folder, ''),
    ],
    ids=['write_errors', 'replacing', 'download', 'damage'],
)
def test_a_full_output_is_not_taken_for_a_file_that_is_being_written(say, context, tmp_path, monkeypatch, capsys):
    def body(values):
        with context(tmp_path):
            say()

    with open('/dev/full', 'w') as full:
        monkeypatch.setattr(sys, 'stdout', full)
        assert run_program(['x.py'], '', absl_flags.FlagValues(), body) == 1
    assert capsys.readouterr().err == (
        'x: standard output cannot be written: [Errno 28] No space left on device; free some space and run the same '
        'command again\n'
    )


@pytest.mark.parametrize('path,word', [('a/\udcff', 'UTF-8'), ('a/[1]', 'pattern'), ('a*', 'pattern')])
def test_paths_that_tensorflow_would_not_take(path, word):
    assert word in message_of(folders.require_no_pattern, path)


def test_tensorboard_takes_no_path_that_is_not_text():
    config = TrainConfig(None, machine=MachineConfig(model_dir='a\udcff', enable_tensorboard=True))
    assert '--model_dir=a' in message_of(more_logging.callbacks_of, config, flags.RunOptions(), set())
