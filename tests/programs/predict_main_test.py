"""predict_main as a user runs it: tables, JSON, explanations, odd images, one line for each mistake."""

import csv
import dataclasses
import errno
import io
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tqdm
from fixtures import programs
from fixtures.networks import save_network
from PIL import Image

from official_resnet import predict_main
from official_resnet.inference import grad_cam, predict, sorted_copies

NAMES = ('dark', 'red', 'green\tand\x1b blue')


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory):
    """A model_dir of a network with three classes, as a run leaves it."""
    folder = tmp_path_factory.mktemp('model_dir')
    save_network(folder, NAMES, (16, 16, 3))
    return folder


@pytest.fixture
def folder(tmp_path):
    """A folder of two images, one of them deeper, and what is none."""
    folder = tmp_path / 'images'
    (folder / 'deeper').mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ('b.png', 'deeper/b.jpg'):
        Image.fromarray(random.integers(0, 256, (30, 20, 3), np.uint8)).save(folder / name)
    (folder / '._b.png').write_bytes(b'not one either')
    return folder


@pytest.fixture
def call(model_dir):
    """Call the program with a model unless --model is among its arguments."""
    return lambda *args: programs.call(
        ' '.join(map(str, ['predict_main', *args, *([] if '--model' in args else ['--model', model_dir])]))
    )


def expected_guesses(model_dir, paths, top):
    return predict.predict(*predict.load(model_dir), paths, top)


def rows_of(result, counts=''):
    code, out, err = result
    assert (code, err) == (0, counts and f'{counts}\n')
    return [json.loads(line) for line in out.splitlines()]


def test_json(call, model_dir, folder):
    rows = rows_of(call(folder, folder / 'b.png', '--json', '--top', '2'))  # flags follow
    paths = [folder / 'b.png', folder / 'deeper' / 'b.jpg', folder / 'b.png']
    assert [row['file'] for row in rows] == list(map(str, paths))
    for row, guesses in zip(rows, expected_guesses(model_dir, paths, 2), strict=True):
        assert set(row) == {'file', 'classes', 'is_unsure', 'copy', 'explanation'}
        assert (row['is_unsure'], row['copy'], row['explanation']) == (False, None, None)
        for found, guess in zip(row['classes'], guesses, strict=True):
            assert found == guess._asdict() | {'probability': pytest.approx(guess.probability, rel=1e-5)}


def test_the_table_is_aligned_and_obeys_no_name(call, model_dir, folder):
    code, out, err = call('--model', model_dir / 'model.keras', folder)
    assert (code, err) == (0, '')
    lines = out.splitlines()
    assert lines[0].split() == ['file', 'rank', 'name', 'probability'] and len(lines) == 1 + 2 * 3
    assert len(set(map(len, lines))) == 1
    assert [line.split()[0] for line in lines[1::3]] == [str(folder / 'b.png'), str(folder / 'deeper' / 'b.jpg')]
    assert [line[lines[0].index('rank') :].split()[0] for line in lines[1:]] == ['1', '2', '3'] * 2
    assert out.count('green?and? blue') == 2 and '\x1b' not in out
    [[first]] = expected_guesses(model_dir, [folder / 'b.png'], 1)
    assert lines[1].endswith(f'{first.probability:.4f}')


def test_csv_has_a_row_for_each_image_and_no_formula(call, model_dir, folder, tmp_path):
    (tmp_path / 'names.txt').write_text('=1+1\n-x\n@y\n')
    code, out, err = call(folder, '--csv', '--top=2', '--labels', tmp_path / 'names.txt', '--min_probability=1')
    assert (code, err) == (0, '')
    rows = list(csv.DictReader(io.StringIO(out, newline='')))
    columns = 'file name id probability is_unsure copy explanation name_2 id_2 probability_2'.split()
    assert list(rows[0]) == columns and {row['is_unsure'] for row in rows} == {'TRUE'}
    paths = [folder / 'b.png', folder / 'deeper' / 'b.jpg']
    for row, path, guesses in zip(rows, paths, expected_guesses(model_dir, paths, 2), strict=True):
        names = ["'=1+1", "'-x", "'@y"]
        assert [row['file'], row['id'], row['copy']] == [str(path), '', '']
        assert [row['name'], row['name_2']] == [names[guess.index] for guess in guesses]
        assert float(row['probability_2']) == pytest.approx(guesses[1].probability, abs=1e-5)


def listed(folder):
    """Return {path: (content, what changes if a file is written again)} of the files below a folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob('*')
        if path.is_file()
    }


def test_copies_are_sorted_once_and_overwrite_nothing(call, model_dir, folder):
    """Also into the folder that is searched, for images of one name, and where another file has the name."""
    root = folder / 'deeper' / 'sorted'
    shutil.copytree(folder / 'deeper', folder / 'again')  # the same bytes: no copy of its own
    for name, mode in (('a', 'L'), ('c', 'RGB')):
        (folder / name).mkdir()
        Image.new(mode, (9, 9)).save(folder / name / 'b.jpg')
    (root / '_unsure').mkdir(parents=True)
    (root / '_unsure' / 'b.jpg').write_text('mine')
    (root / '_unsure' / 'b_2.jpg').symlink_to('nowhere')
    sources = listed(folder)
    counts = '5 classified, 4 copied, 1 already there'
    rows = rows_of(call(folder, '--json', '--copy_to', root, '--min_probability=1'), counts)
    assert [row['is_unsure'] for row in rows] == [True] * 5
    copies = [row['copy'].removeprefix(f'{root}/_unsure/') for row in rows]  # in the order of the folders
    assert copies == ['b_3.jpg', 'b_4.jpg', 'b.png', 'b_5.jpg', 'b_4.jpg']
    for row in rows:
        assert pathlib.Path(row['copy']).read_bytes() == pathlib.Path(row['file']).read_bytes()
    before = listed(folder)
    assert before.items() > sources.items() and len(before) == len(sources) + 4
    code, out, err = call(folder, '--copy_to', root, '--min_probability=1')
    assert code == 0 and out.count(' unsure\n') == 5 and out.count(f'-> {root}/_unsure/b') == 5, err
    assert err == '5 classified, 0 copied, 5 already there\n'
    assert listed(folder) == before and [*root.iterdir()] == [root / '_unsure']  # nothing temporary is left
    [row] = rows_of(call(folder / 'b.png', '--json', '--copy_to', root), '1 classified, 1 copied, 0 already there')
    assert row['copy'] == str(root / row['classes'][0]['name'].replace('\t', '_').replace('\x1b', '_') / 'b.png')


@pytest.mark.parametrize(
    'names,expected',
    [
        (['cat', 'a/b', '..', '.', '', '.cat', 'c:\0d '], ['cat', 'a_b', '__2', '__3', '__4', '_cat', 'c__d']),
        (['a', 'A', 'a_0', 'caf\u00e9', 'cafe\u0301'], ['a_0_0', 'A_1', 'a_0', 'caf\u00e9_3', 'cafe\u0301_4']),
        (['_unsure', '\udcff', 'x' * 999], ['_unsure_0', '_', 'x' * 200]),
    ],
)
def test_folders_of_classes(names, expected, tmp_path):
    found = sorted_copies.folder_names(names, [None] * len(names))
    assert found == expected
    for name in found:
        (tmp_path / name).mkdir()
    assert len(list(tmp_path.iterdir())) == len(names)


@pytest.mark.parametrize('error', [errno.EPERM, errno.EEXIST])
def test_copies_without_hard_links_or_beside_a_faster_process(error, folder, tmp_path, monkeypatch):
    def link(part, target):
        if error == errno.EEXIST and not os.path.exists(target):
            pathlib.Path(target).write_text('of the other process')
            monkeypatch.undo()
        raise OSError(error, '', str(target))

    monkeypatch.setattr(os, 'link', link)
    with sorted_copies.copying(tmp_path / 'new') as copy:
        path, is_new = copy(folder / 'b.png', 'cat')
    assert is_new and path == tmp_path / 'new' / 'cat' / ('b.png' if error == errno.EPERM else 'b_2.png')
    assert path.read_bytes() == (folder / 'b.png').read_bytes() and len(list((tmp_path / 'new').iterdir())) == 1


def test_many_images_are_computed_by_a_compiled_network(call, folder):
    few, many = rows_of(call(folder, '--json')), rows_of(call(*[folder] * 16, '--json', '--batch_size', '5'))
    assert len(many) == predict_main.NUM_TO_COMPILE
    for got, expected in zip(many, few * 16, strict=True):
        assert got['file'] == expected['file']
        np.testing.assert_allclose(got['classes'][0]['probability'], expected['classes'][0]['probability'], rtol=1e-4)


def test_explanations(call, folder, tmp_path):
    output_dir = tmp_path / 'new' / 'folder'
    rows = rows_of(call(folder, '--explain', '--output_dir', output_dir, '--json'))
    paths = [row['explanation']['file'] for row in rows]  # two images are called b
    assert paths == [str(output_dir / name) for name in ('b_grad_cam.png', 'b_grad_cam_2.png')]
    for row, path in zip(rows, paths, strict=True):
        assert row['explanation']['index'] == row['classes'][0]['index']
        with Image.open(path) as image:
            assert image.size == (3 * 224 + 2 * 4, 224 + 32) and image.mode == 'RGB'  # 16 x 16, enlarged
    for text in ('1', 'red'):
        result = call(folder / 'b.png', '--explain', '--explain_class', text, '--output_dir', output_dir)
        assert result[1].splitlines()[-1].split() == ['->', paths[0], '(red)'], result


def test_an_explanation_overwrites_only_one_of_the_same_image(call, tmp_path):
    """Also if images of one name are explained one after the other, and if something else has the name."""
    (tmp_path / 'x_grad_cam_2.png').write_text('no image')
    for name, level in (('a', 90), ('b', 200)):
        (tmp_path / name).mkdir()
        Image.new('RGB', (16, 16), (level, 0, 0)).save(tmp_path / name / 'x.png')
    for name, number in (('a', ''), ('b', '_3'), ('a', ''), ('b', '_3')):
        [row] = rows_of(call(tmp_path / name / 'x.png', '--explain', '--output_dir', tmp_path, '--json'))
        assert row['explanation']['file'] == f'{tmp_path}/x_grad_cam{number}.png'


def test_explanations_are_neither_classified_nor_explained_again(call, folder):
    for _ in range(2):
        rows = rows_of(call(folder, '--explain', '--output_dir', folder, '--json'))
        assert [row['file'] for row in rows] == [f'{folder}/b.png', f'{folder}/deeper/b.jpg']
    assert len([*folder.glob('*_grad_cam*')]) == 2


def test_names_of_255_bytes_are_copied_and_explained_under_shorter_ones(call, tmp_path):
    name = '\u9e45' * 83 + 'ab.png'  # 3 bytes each
    for place, level in (('a', 90), ('b', 200)):
        (tmp_path / place).mkdir()
        Image.new('RGB', (16, 16), (level, 0, 0)).save(tmp_path / place / name)
    flags = ['--copy_to', tmp_path / 'sorted', '--min_probability=1', '--explain', '--output_dir', tmp_path / 'new']
    rows = rows_of(call(tmp_path / 'a', tmp_path / 'b', *flags, '--json'), '2 classified, 2 copied, 0 already there')
    copies = [pathlib.Path(row['copy']).name for row in rows]
    assert copies == [name, '\u9e45' * 81 + '_2.png']
    pages = [pathlib.Path(row['explanation']['file']).name for row in rows]
    assert pages == ['\u9e45' * 79 + '_grad_cam.png', '\u9e45' * 78 + '_grad_cam_2.png']
    assert {path.name for path in (tmp_path / 'new').iterdir()} == {*pages}


def test_a_mistake_leaves_no_empty_folder(call, folder, tmp_path):
    (tmp_path / 'text.png').write_text('x')
    flags = f'--copy_to={tmp_path}/left --explain --output_dir={tmp_path}/left2'.split()
    for more in ([tmp_path / 'text.png'], [folder, '--explain_class=swan']):
        code, _, err = call(*flags, *more)
        assert code == 1 and ('swan' not in err or "'dark', 'red'" in err), err
    assert not [*tmp_path.glob('left*')]


def test_a_path_that_may_not_be_read_is_skipped(call, folder, monkeypatch):
    ask = os.stat

    def stat(path, **options):
        if str(path).endswith('secret/0.jpg'):
            raise PermissionError(errno.EACCES, 'Permission denied', path)
        return ask(path, **options)

    monkeypatch.setattr(predict_main.os, 'stat', stat)
    code, out, err = call(folder / 'b.png', 'secret/0.jpg', '--json')
    assert code == 1 and len(out.splitlines()) == 1
    assert "'secret/0.jpg': Permission denied" in err and err.endswith('1 classified, 1 skipped\n')


def test_chinese_names_are_aligned_marked_for_excel_and_explained_by_number(call, folder, tmp_path, monkeypatch):
    (tmp_path / 'names.txt').write_text('\u9ed1\u5929\u9e45\nswan\ncafe\u0301\n', encoding='utf-8')
    labels = ['--labels', tmp_path / 'names.txt', folder / 'b.png']
    code, out, _ = call(*labels)
    lines = out.splitlines()[1:]
    places = {len(line) + 3 * line.count('\u9ed1') - line.count('\u0301') for line in lines}
    assert code == 0 and len(places) == 1 and len(lines) == 3
    assert call(*labels, '--csv')[1].startswith('\ufefffile,') and call(labels[2], '--csv')[1].startswith('file,')
    monkeypatch.setattr(grad_cam, '_FONTS', ())
    _, _, err = call(*labels, '--explain', '--explain_class=0', '--output_dir', tmp_path)
    assert err.count('\n') == 1 and '\u9ed1\u5929\u9e45' in err and 'class 0' in err and 'Noto' in err


def test_an_explanation_overwrites_no_image(call, folder):
    (folder / 'b.png').rename(folder / 'b_grad_cam.png')
    Image.new('RGB', (9, 9)).save(folder / 'b.bmp')
    before = (folder / 'b_grad_cam.png').read_bytes()
    code, out, _ = call(folder, '--explain', '--output_dir', folder)
    assert code == 0 and str(folder / 'b_grad_cam_2.png') in out
    assert (folder / 'b_grad_cam.png').read_bytes() == before


def test_grey_padded_images_are_explained_without_the_padding(call, tmp_path):
    save_network(tmp_path, '0123456789', (32, 32, 1), image_shape=(28, 28, 1))
    Image.new('L', (28, 28), 90).save(tmp_path / 'a.png')
    code, _, err = call('--model', tmp_path, tmp_path / 'a.png', '--explain', '--output_dir', tmp_path)
    assert code == 0, err
    with Image.open(tmp_path / 'a_grad_cam.png') as image:
        assert image.size == (3 * 224 + 2 * 4, 224 + 32)  # 8 times 28


def test_what_cannot_be_read_is_named_and_left_out(call, folder, tmp_path):
    whole = (folder / 'deeper' / 'b.jpg').read_bytes()
    bad = {'cut.jpg': whole[: len(whole) // 2], 'text.png': b'hello', 'empty.gif': b'', 'nul.bmp': bytes(100)}
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    (tmp_path / 'nothing').mkdir()
    others = [tmp_path / 'nothing', tmp_path / 'absent.png', tmp_path / 'notes.txt']
    for path in (others[2], folder / 'phone.HEIC', folder / 'readme.md'):
        path.write_text('no image')
    (folder / 'c.jfif').write_bytes(whole)
    code, out, err = call(folder, *others, '--json', '--batch_size', '2')
    assert code == 1 and len(out.splitlines()) == 3 and 'c.jfif' in out  # one that he named is not there
    *lines, last = err.splitlines()
    assert last == f'3 classified, {len(bad) + 4} skipped'  # also text and HEIC; an empty folder is no file
    assert (
        len(lines) == len(bad) + len(others) + 2
        and f"(2): '{folder}/phone.HEIC', '{folder}/readme.md'" in err
        and '1 of these: HEIC' in err
        and 'convert it to JPEG' in err
        and all(line.startswith('skipped: ') for line in lines)
    ), err
    for name in (*bad, *(path.name for path in others)):
        assert sum(name in line for line in lines) == 1, err
    remedies = {'text.png': 'save it as JPEG', 'empty.gif': 'empty; get it again'}
    assert all(remedy in next(line for line in lines if name in line) for name, remedy in remedies.items()), err
    for paths in ([folder / name for name in bad], others[:1]):
        code, out, err = call(*paths)
        assert code == 1 and out == '' and err.count('\n') == len(paths) + 1


def test_other_names(call, folder, tmp_path):
    (tmp_path / 'names.txt').write_text('eins\nzwei\ndrei\n')
    [row] = rows_of(call(folder / 'b.png', '--labels', tmp_path / 'names.txt', '--json'))
    assert {guess['name'] for guess in row['classes']} == {'eins', 'zwei', 'drei'}


def test_a_class_is_named_in_either_unicode_form(model_dir):
    card = dataclasses.replace(predict.load(model_dir)[1], names=('a', 'cafe\u0301', 'b'))
    assert [predict_main.class_index(card, name) for name in ('caf\u00e9', 'cafe\u0301', 'b')] == [1, 1, 2]
    numbers = dataclasses.replace(card, names=('2', '10', 'b'))  # the name wins over the number
    assert [predict_main.class_index(numbers, text) for text in ('2', '10', '1')] == [0, 1, 1]


def test_mistakes_are_one_line(model_dir, folder, tmp_path):
    """Those that the table of wrong_inputs_test does not have."""
    line, image = f'predict_main --model {model_dir}', folder / 'b.png'
    (tmp_path / 'same.txt').write_text('crane\ncrane\nx\n')
    for args, message in (
        ('', 'no images'),
        ('http://a.b/c.jpg', 'http://a.b/c.jpg'),
        (f'{image} --labels {tmp_path}/same.txt --explain --explain_class crane', '0, 1'),
        (f'{image} --explain --explain_class blue', "'blue'"),
        (f'{folder} --copy_to={folder}/deeper/..', f"'{folder}' lies in --copy_to"),
        (f'{folder}/deeper --copy_to={folder}', f"'{folder}/deeper' lies in --copy_to"),
    ):
        assert message in programs.mistake(f'{line} {args}')


def test_the_program_itself_reads_a_checkpoint(source, folder, tmp_path):
    line = f'predict_main --model {max(source.rglob("step-*.npz"))} --top=1 {folder}/b.png {folder}/notes.txt'
    (folder / 'notes.txt').write_text('no image')
    code, out, err = programs.run(line, cwd=tmp_path, env=os.environ | {'CUDA_VISIBLE_DEVICES': '-1'})
    assert code == 0 and err.count('\n') == 2, err  # no start-up noise
    assert 'notes.txt' in err and len(out.splitlines()) == 2


def test_the_checkpoint_of_a_run_that_has_not_ended_is_named(source, folder, tmp_path):
    run = shutil.copytree(source, tmp_path / 'run', ignore=shutil.ignore_patterns('model.keras'))
    code, out, err = programs.call(f'predict_main --model {run} --json {folder}/b.png')
    assert code == 0 and len(out.splitlines()) == 1 and str(max(run.rglob('step-*.npz'))) in err


def test_a_reader_that_has_enough(model_dir, folder, monkeypatch, capfd):
    replaced = []

    def closed(*args):
        raise BrokenPipeError

    monkeypatch.setattr(predict_main, 'find_images', closed)
    monkeypatch.setattr(os, 'dup2', lambda *args: replaced.append(args))
    assert predict_main.main(['predict_main.py', '--model', str(model_dir), str(folder)]) == 0
    assert replaced and capfd.readouterr().err == ''


def test_a_reader_that_leaves_does_not_end_the_copying_unnoticed(model_dir, folder, tmp_path):
    line = f'predict_main --model {model_dir} {folder} --copy_to={tmp_path}/sorted'
    process = programs.start(line)
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 1 and 'nothing reads its output' in error and 'same command again' in error


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize('count', [8, 9])
def test_a_terminal_shows_progress_if_there_are_several_batches(call, folder, count, monkeypatch):
    terminal = Terminal()

    class Bar(tqdm.tqdm):
        def __init__(self, **options):
            super().__init__(file=terminal, **options)

    monkeypatch.setattr(predict_main, 'tqdm', Bar)
    code, out, err = call(*[folder / 'b.png'] * count, '--top=1')
    assert (code, err) == (0, '') and len(out.splitlines()) == 1 + count
    assert ('0/9' in terminal.getvalue()) == (count > 8)


@pytest.mark.parametrize('columns', [80, 100])
def test_a_terminal_has_rows_that_fit_and_hears_that_tensorflow_starts(call, folder, columns, monkeypatch, model_dir):
    """Folders are cut where needed, file names never; nothing is cut in a pipe."""
    deep = folder / ('d' * 99) / '\u9e45'
    deep.mkdir(parents=True)
    for name in ('b.png', 'n' * 99 + '.png'):
        shutil.copy(folder / 'b.png', deep / name)
    flags = [folder, f'--copy_to={folder}/sorted', '--explain', f'--output_dir={folder}', '--top=1']
    piped = call(*flags, '--min_probability=1')
    assert str(deep / 'b.png') in piped.out and '\u2026' not in piped.out
    monkeypatch.setenv('COLUMNS', str(columns))
    monkeypatch.setattr(io, 'StringIO', Terminal)
    code, out, err = call(*flags, '--min_probability=1')
    assert code == 0 and err.startswith(f'loading {model_dir}')
    lines = [line for line in out.splitlines() if 'n' * 99 not in line]
    assert len(lines) == 1 + 3 * 3 and all(len(line) + line.count('\u9e45') <= columns for line in lines)
    assert sum('\u2026' in line and '\u9e45/b.png ' in line for line in lines) == 1
    assert {len(line) + line.count('\u9e45') for line in lines if line.endswith('unsure')} == {columns - 1}
    assert out.count('\u2026/' + 'n' * 99 + '.png ') == 1
