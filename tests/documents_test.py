"""What the documents mention exists: files, links, names, flags, versions. And the README's Python block runs."""

import ast
import concurrent.futures
import functools
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import official_resnet

ROOT = pathlib.Path(official_resnet.__file__).parent.parent
NAMES = ('README.md', 'CONTRIBUTING.md', 'data/README.md', 'checkpoints_tools/README.md')
DOCUMENTS = sorted([*(ROOT / name for name in NAMES), *(ROOT / 'docs').glob('*.md')])
MAX_README_LINES = 250
PACKAGES = ('official_resnet', 'checkpoints_tools', 'benchmarks', 'data', 'tests')
TREES = ('.ci/', 'docs/', *(f'{name}/' for name in PACKAGES))  # a path that begins so is of the repository
PLACEHOLDER = 'FAMILY'  # in a name that the reader fills in
SUFFIXES = 'py md json jsonl png csv keras tar gz tgz zip txt npz pth jpg yaml toml cff tsv bzl safetensors'.split()
# Flags of other programs, or of all, that the documents mention without their command.
FOREIGN = set(
    """
    runner project region temp_location sdk_container_image experiments flink_master environment_type
    environment_config job_endpoint direct_running_mode direct_num_workers help helpfull
    """.split()
)

FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SPAN = re.compile(r'(?<!`)`([^`\n]+)`(?!`)')
LINK = re.compile(r'!?\[[^\]]*\]\(([^)\s]+)\)')
HEADING = re.compile(r'^#+ (.+)$', re.MULTILINE)
FLAG = re.compile(r'(?<![\w-])(--?)([a-zA-Z][\w-]*)')
PROGRAM = re.compile(r'(?:\S+/)?\w+\.py|-m [\w.]+|bazel-bin/data/\w+')


def name_of(path):
    return str(path.relative_to(ROOT))


def text_of(path):
    return path.read_text(encoding='utf-8')


def fences(path, *languages):
    """The contents of the code blocks in one of these languages."""
    return [body for language, body in FENCE.findall(text_of(path)) if language in languages]


def prose(path):
    """A document without its code blocks."""
    return FENCE.sub('', text_of(path))


def spans(path):
    """The inline code of a document."""
    return SPAN.findall(prose(path))


# --- files and links ---


@functools.cache
def file_names():
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    paths = listed.stdout.splitlines() or [str(path.relative_to(ROOT)) for path in ROOT.rglob('*.py')]
    return {pathlib.PurePath(path).name for path in paths}


def missing_path(text):
    """Whether inline code, or a word of a command, is a path of the repository that is not there."""
    text = text.partition('#')[0]
    if PLACEHOLDER in text:
        return False
    if text.startswith(TREES):
        return not (ROOT / text).exists()
    if re.fullmatch(r'[\w./-]+\.(py|md)', text):
        return not ((ROOT / text).exists() or '/' not in text and text in file_names())
    return False


def anchor(heading):
    """The anchor that GitHub gives a heading."""
    heading = re.sub(r'[`*]|\[([^\]]*)\]\([^)]*\)', r'\1', heading).strip().lower()
    return re.sub(r'[^\w\- ]', '', heading).replace(' ', '-')


@pytest.mark.parametrize('path', DOCUMENTS, ids=name_of)
def test_files_and_links_exist(path):
    words = [word for span in spans(path) for word in (span.split()[:1] if ' ' in span else [span])]
    for command in commands_of(path):
        words += [word for word in command.split() if word.endswith('.py') and '=' not in word]
    assert not (missing := sorted({word for word in words if missing_path(word)})), missing
    for link in LINK.findall(prose(path)):
        if re.match(r'\w+:', link):
            continue
        target, _, heading = link.partition('#')
        target = (path.parent / target).resolve() if target else path
        assert target.exists() and target.is_relative_to(ROOT), link
        if heading:
            assert heading in map(anchor, HEADING.findall(FENCE.sub('', text_of(target)))), link


# --- names of ours ---


@functools.cache
def modules():
    """{dotted name, whole or of its last parts: [files]} of our modules and packages."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob('*.py'):
            parts = path.relative_to(ROOT).with_suffix('').parts
            parts = parts[:-1] if parts[-1] == '__init__' else parts
            for start in range(len(parts)):
                found.setdefault('.'.join(parts[start:]), []).append(path)
    return found


@functools.cache
def names_in(path):
    """What a module and its classes define, and what it imports anywhere; of a package also its modules."""
    nodes = list(ast.walk(ast.parse(text_of(path))))
    imported = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    found = {alias.asname or alias.name for alias in imported}
    for node in (node for scope in nodes if isinstance(scope, ast.Module | ast.ClassDef) for node in scope.body):
        targets = getattr(node, 'targets', [getattr(node, 'target', node)])
        found |= {getattr(target, 'id', getattr(target, 'name', None)) for target in targets}
    return found | {child.stem for child in path.parent.iterdir() if path.name == '__init__.py'}


def wrong_name(dotted):
    """Whether 'module.name' or 'Class.name' is of a module or class of ours that has no such name."""
    parts = dotted.split('.')
    for count in range(len(parts), 0, -1):
        if paths := modules().get('.'.join(parts[:count])):
            return not any(names_in(path).issuperset(parts[count:]) for path in paths)
    paths = {path for paths in modules().values() for path in paths if f'\nclass {parts[0]}' in text_of(path)}
    return parts[0] in PACKAGES or bool(paths) and not any(names_in(path).issuperset(parts) for path in paths)


def dotted_names(tree):
    """What a block of Python takes from our modules, as 'module.name'."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(PACKAGES):
            for alias in node.names:
                name = f'{node.module}.{alias.name}'
                yield name
                if name in modules():
                    aliases[alias.asname or alias.name] = name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield f'{aliases[node.value.id]}.{node.attr}'


# --- flags ---


def commands_of(path):
    """The commands of a document that call a program: lines of its shell blocks, and inline code."""
    blocks = [re.sub(r'\\\n', ' ', body) for body in fences(path, 'bash')]
    lines = [line for body in blocks for line in body.splitlines()]
    lines += [span for span in spans(path) if ' ' in span]
    lines = [re.sub(r'(^|\s)#.*', '', line) for line in lines]
    return [part for line in lines for part in re.split(r'&&|\||;', line) if PROGRAM.search(part)]


def program_of(command):
    """The file of the program of ours that a command calls, or None."""
    word = PROGRAM.search(command)[0]
    if word.startswith('-m '):
        return (modules().get(word[3:]) or [None])[0]
    word = f'{word}.py' if word.startswith('bazel-bin') else word
    paths = [ROOT / word.removeprefix('bazel-bin/'), ROOT / 'official_resnet' / word]
    paths += [ROOT / 'official_resnet' / 'experiments' / word]
    return next((path for path in paths if path.is_file()), None)


@functools.cache
def help_of(path):
    """What a program says of its flags."""
    environment = os.environ | {'TF_CPP_MIN_LOG_LEVEL': '3', 'CUDA_VISIBLE_DEVICES': '-1'}
    command = [sys.executable, '-m', '.'.join(path.relative_to(ROOT).with_suffix('').parts)]
    if path.parts[-2] in ('data', 'tests'):
        command = [sys.executable, str(path)]
    for flag in ('--helpfull', '--help'):  # argparse knows only the latter
        result = subprocess.run([*command, flag], cwd=ROOT, env=environment, capture_output=True, text=True)
        if result.returncode == 0:
            return result.stdout
    raise AssertionError(f'{path}: {result.stderr}')


def has_flag(path, dashes, name):
    """Whether a program has a flag, by its name, its short name, or with 'no' before it."""
    listed = set(re.findall(r'(?<![\w-])--?(?:\[no\])?([a-zA-Z][\w-]*)', help_of(path)))
    return name in listed or (dashes == '--' and name.removeprefix('no') in listed)


def test_flags_exist():
    """In commands, those of the program; in prose, those of any program."""
    commands = [(path, command) for path in DOCUMENTS for command in commands_of(path) if program_of(command)]
    programs = {program_of(command) for _, command in commands}
    programs |= {ROOT / 'official_resnet' / f'{name}_main.py' for name in ('cifar10', 'imagenet')}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(help_of, programs))
    found = []
    for path, command in commands:
        flags = FLAG.findall(command[PROGRAM.search(command).end() :])
        found += [(path, [program_of(command)], *flag) for flag in flags]
    assert len(found) > 100, 'the commands of the documents are not found any more'
    for path in DOCUMENTS:
        flags = [flag for span in spans(path) if span.startswith('--') for flag in FLAG.findall(span)]
        found += [(path, programs, dashes, name) for dashes, name in flags if dashes == '--']
    wrong = [
        f'{name_of(path)}: {dashes}{name}'
        for path, programs, dashes, name in found
        if name not in FOREIGN and not any(has_flag(program, dashes, name) for program in programs)
    ]
    assert not wrong, wrong


# --- the rest ---


def test_versions_agree():
    version = official_resnet.__version__
    setup = subprocess.run([sys.executable, 'setup.py', '--version'], cwd=ROOT, capture_output=True, text=True)
    assert setup.stdout.split()[-1:] == [version], setup.stderr
    assert version not in text_of(ROOT / 'setup.py')
    assert 'version' not in tomllib.loads(text_of(ROOT / 'pyproject.toml')).get('project', {})
    for name, pattern in (
        ('CITATION.cff', r'^version: (\S+)$'),
        ('MODULE.bazel', r'version = "(\S+)"'),
        ('CHANGELOG.md', r'^## \[(\S+)\]'),
    ):
        assert re.search(pattern, text_of(ROOT / name), re.MULTILINE)[1] == version, name


def test_the_readme_is_short_and_has_the_command_that_ci_runs():
    text = text_of(ROOT / 'README.md')
    assert len(text.splitlines()) <= MAX_README_LINES
    assert '-m pytest' in re.search(r'<!-- test command -->\n```bash\n(.+?)\n```\n', text, re.DOTALL)[1]


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec('\n'.join(fences(ROOT / 'README.md', 'python')), {})
    assert 0 <= float(capsys.readouterr().out.split()[-1]) <= 1  # the accuracy that it prints last
