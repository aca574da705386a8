"""What must hold for any arguments: every program takes them, or refuses them in one line."""

import contextlib
import importlib
import io

import pytest
from fixtures.program_table import PROGRAMS, TRAINING, canonical
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from official_resnet.command_line import flags
from official_resnet.command_line.program import run_program
from official_resnet.training.config import flags_of

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TEXT = st.text(st.characters(exclude_characters='\0', exclude_categories=()), max_size=12)  # no argument has a NUL
ODD = ['', '1e400', '²', '٣', '9' * 5000, '=', '-', '--', '"', '~', '~nobody', '\udcff', '\n', '\x1b[31m']
VALUES = TEXT | st.sampled_from([*ODD, *'0 -1 nan 1_0 true , a,b 1,2 no'.split()])
# Fields that hold what a flag stands for, not its word.
RESOLVED = 'distribution_strategy', 'data_dir', 'num_classes', 'background', 'normalization'
FORMS = ('--{0}={1}', '--{0} {1}', '-{0} {1}', '--no{0}', '--no{0}={1}', '--{0}', '{1}', '--{1}', '--undefok={0}')


def answer(program, args, values, body):
    """Return (exit code, standard error) of a program whose flags are `values`."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        code = run_program([f'{program}.py', *args], 'doc', values, body)
    err.getvalue().encode()  # no lone surrogates
    return code, err.getvalue()


@st.composite
def arguments(draw, names):
    """Draw the arguments of a program with these flags: sensible, senseless, cut off."""
    result = []
    for _ in range(draw(st.integers(0, 5))):
        name, value, form = draw(st.sampled_from(names)), draw(VALUES), draw(st.sampled_from(FORMS))
        name = name[: len(name) - draw(st.sampled_from([0, 0, 0, 1]))]
        result += [part.format(name, value) for part in form.split()]
    return result


@pytest.mark.parametrize('program', PROGRAMS)
@quick
@given(data=st.data())
def test_any_arguments_are_taken_or_refused_in_one_line(program, data):
    values, ran = PROGRAMS[program].define_flags(), []
    args = data.draw(arguments(sorted(values) or ['none']))
    if program in ('predict_main', 'download_and_preprocess_imagenet'):
        values.set_gnu_getopt(True)
    code, err = answer(program, args, values, ran.append)
    if code == 0:
        assert err == '' and (ran or '--help' in args or '-h' in args)
    else:
        assert code == 1 and err.startswith(f'{program}: ') and err.splitlines() == [err[:-1]] and not ran


@pytest.mark.parametrize(
    'line,words',
    [*((program, '') for program in PROGRAMS), ('read_ckpt --input=x', '=x'), ('export_main --to=onnx -m=x', 'output')],
)
def test_a_flag_that_is_missing_is_named_without_a_value(line, words):
    program, *args = line.split()
    _, err = answer(program, args, PROGRAMS[program].define_flags(), lambda *given: None)
    assert 'None' not in err and words in err


@pytest.mark.parametrize('program', PROGRAMS)
def test_help_fits_80_columns(program, capsys):
    with contextlib.suppress(SystemExit):
        PROGRAMS[program].main([f'{program}.py', '--help'])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3 and not [line for line in lines if len(line) > 80]


@pytest.mark.parametrize('program', TRAINING)
@quick
@given(data=st.data())
def test_what_the_flags_take_is_resolved_or_refused_in_one_line(program, data):
    """A flag that is given has its value, whatever the recipe says."""
    row, args, resolved = importlib.import_module(f'official_resnet.{program}').PROGRAM, [], []
    values = flags.define(row)
    for name in data.draw(st.lists(st.sampled_from(sorted(canonical(values))), max_size=6)):
        parser = values[name].parser
        if hasattr(parser, 'enum_values'):
            right = st.sampled_from(parser.enum_values)
        else:
            right = st.integers(parser.lower_bound or 0, 4000) if hasattr(parser, 'lower_bound') else TEXT
        args.append(f'--{name}={data.draw(right)}')
    code, err = answer(program, args, values, lambda values: resolved.append(flags.resolve(values, row)))
    assert (code, len(resolved), len(err.splitlines())) in ((0, 1, 0), (1, 0, 1)), args
    for config, options in resolved:
        for part in (config, config.machine, options):
            for flag, field in flags_of(type(part)).items():
                is_plain = field.name not in RESOLVED
                if flag in flags.given(values) and is_plain and not field.metadata.get('is_path') and not config.views:
                    value = values[flag].value
                    is_alike = getattr(part, field.name) == (tuple(value) if isinstance(value, list) else value)
                    assert is_alike or (flag == 'transfer' and values.fine_tune), flag
