"""The numbers of a report, counted by hand, and what its page may hold."""

import base64
import csv
import dataclasses
import html.parser
import io
import json
import math
import pathlib
import re

import numpy as np
import pytest
from fixtures.batches import message_of
from fixtures.reports import HOSTILE, ROWS, RUN, STEPS, comparison_of, guesses_of, page_of, subject_of
from PIL import Image

from official_resnet.inputs.affine import PUBLISHED
from official_resnet.reports import figures, report, report_page
from official_resnet.reports.report_texts import TEXTS

SOURCES = [
    pathlib.Path(report.__file__).with_name(name) for name in ('report.html.jinja', 'report_page.py', 'report.py')
]


def test_wilsons_interval_by_its_formula():
    z, share, count = 1.959964, 0.9, 10
    middle, half = share + z**2 / 20, z * math.sqrt(share * 0.1 / count + z**2 / 400)
    expected = [(middle - half) / (1 + z**2 / 10), (middle + half) / (1 + z**2 / 10)]
    assert report.wilson_interval(9, 10) == pytest.approx(expected, abs=1e-6)
    assert report.wilson_interval(10, 10)[1] == 1 and report.wilson_interval(0, 10)[0] == 0


@pytest.mark.parametrize(
    'only_first,only_other,p', [(2, 0, 0.5), (10, 2, 2 * (1 + 12 + 66) / 2**12), (0, 0, 1), (3, 3, 1)]
)
def test_mcnemars_test_by_the_binomial_distribution(only_first, only_other, p):
    ours = np.repeat([True, False, True, False], [only_first, only_other, 4, 5])
    theirs = np.repeat([False, True, True, False], [only_first, only_other, 4, 5])
    counts = {'both': 4, 'only_first': only_first, 'only_other': only_other, 'neither': 5}
    assert report.mcnemar(ours, theirs) == {**counts, 'p': pytest.approx(p)}


def test_the_calibration_error_by_hand():
    found = report.calibration(np.array([0.0, 0.5, 0.6, 1.0, 0.9]), np.array([0, 1, 1, 1, 0], bool), num_bins=2)
    low, high = found['bins']  # 0.5 is in the lower one
    assert (low['count'], low['confidence'], low['accuracy']) == (2, 0.25, 0.5)
    assert (high['count'], high['low'], high['high']) == (3, 0.5, 1)
    assert (high['confidence'], high['accuracy']) == (pytest.approx(2.5 / 3), pytest.approx(2 / 3))
    assert found['ece'] == pytest.approx((2 * 0.25 + 3 * (2.5 / 3 - 2 / 3)) / 5)
    empty = report.calibration(np.array([0.9]), np.array([True]))['bins'][0]
    assert (empty['count'], empty['accuracy']) == (0, None)


def test_the_numbers_of_a_report_by_hand():
    subject = subject_of(('ant', 'bee', 'cow', 'dog'))
    guesses = guesses_of(
        [0, 0, 1, 1, 2], [0, 1, 1, 1, 0], [0.5, 0.9, 0.6, 0.7, 0.95], [0.5, 0.05, 0.6, 0.7, 0.04], [3, 4, 5, 6, 7]
    )
    found = report.collect(subject, guesses, 2)
    assert (found['n'], found['top1'], found['left_out']) == (5, 0.6, 7)
    assert found['interval'] == report.wilson_interval(3, 5)
    scores = [(row['precision'], row['top1'], row['f1'], row['count']) for row in found['classes']]
    assert scores[0] == (0.5, 0.5, 0.5, 2) and scores[1] == (pytest.approx(2 / 3), 1, pytest.approx(0.8), 2)
    assert scores[2] == (None, 0, 0, 1) and scores[3] == (None, None, None, 0)  # never guessed; no image
    assert found['mean']['f1'] == pytest.approx((0.5 + 0.8 + 0) / 3)
    assert found['loss'] == pytest.approx(-np.log([0.5, 0.05, 0.6, 0.7, 0.04]).mean(), rel=1e-6)
    mistakes, hits = found['gallery']['surest_mistakes'], found['gallery']['least_sure_hits']
    assert [(entry['image'], entry['label'], entry['guess']) for entry in mistakes] == [(7, 2, 0), (4, 0, 1)]
    assert [entry['image'] for entry in hits] == [3, 5] and mistakes[1]['label_probability'] == pytest.approx(0.05)
    assert found['config'] == RUN['config'] and json.loads(json.dumps(found)) == found


def test_a_diverged_network_is_said():
    subject = subject_of('abc')
    subject.model.get_layer('logits').bias.assign([np.nan] * 3)
    assert 'train' in message_of(report.guess, subject) and 'net <1>' in message_of(report.guess, subject)


def test_images_by_their_numbers():
    """In any order, over the borders of batches (of 5); padded as the network's input is."""
    subject = subject_of('ab')
    subject = dataclasses.replace(subject, test=dataclasses.replace(subject.test, input_size=36))
    found = report.images_at(subject.test, [11, 4, 5, 4], subject.batch_size)
    assert found.shape == (4, 36, 36, 3) and not found[:, :2].any()
    np.testing.assert_array_equal(found[:, 2:-2, 2:-2], subject.test.images[[11, 4, 5, 4]])
    assert report.images_at(subject.test, [], 5).shape == (0, 36, 36, 3)


def test_the_files_of_a_report(tmp_path):
    subject = subject_of(HOSTILE)
    guesses = report.guess(subject)
    found = report.collect(subject, guesses, 1)
    report.write(found, subject, guesses, tmp_path / 'new')
    names = ['confusion.csv', 'images.csv', 'per_class.csv', 'report.json']
    assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == names
    assert json.loads((tmp_path / 'new' / 'report.json').read_text(encoding='utf-8')) == found
    with open(tmp_path / 'new' / 'images.csv', encoding='utf-8-sig', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [int(row['image']) for row in rows] == list(range(12))
    assert [row['label'] for row in rows] == [
        HOSTILE[i].encode('utf-8', 'backslashreplace').decode() for i in guesses.labels
    ]
    assert sum(row['label'] == row['guess'] for row in rows) / 12 == pytest.approx(found['top1'])
    with open(tmp_path / 'new' / 'per_class.csv', encoding='utf-8-sig', newline='') as file:
        assert [row['precision'] for row in csv.DictReader(file)] == [
            '' if row['precision'] is None else str(row['precision']) for row in found['classes']
        ]


class Page(html.parser.HTMLParser):
    """The tags, the addresses and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], ''
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ('src', 'href', 'xlink:href', 'srcset', 'action')]

    def handle_data(self, data):
        self.text += data


def test_a_page_of_hostile_names_has_them_as_text_and_loads_nothing():
    _, text = page_of(subject_of(HOSTILE))
    page = Page(text)
    for name in (
        '<script>alert(1)</script>',
        '"\'&amp;',
        '猫',
        'two lines',
        '??',
        '{{ 7 * 7 }}',
        '_x $y$ </svg>',
        'net <1>',
    ):
        assert name in page.text
    assert 'script' not in page.tags and 'a & b' in page.text and '<b>fast</b>' in page.text
    assert page.links and all(link.startswith(('data:', '#')) for link in page.links)
    assert not re.search(r'\bon\w+=|@import|url\((?!#)', text)
    assert page.tags.count('svg') == 4 and page.tags.count('html') == 1 and 'currentColor' in text
    text.encode()  # no lone surrogate


@pytest.mark.parametrize('language', TEXTS)
def test_the_page_in_each_language(language):
    found, text = page_of(subject_of('abc'), language)
    page, words = Page(text), TEXTS[language]
    assert f'<html lang="{words["code"]}">' in text and '{' not in page.text.partition('</style>')[2]
    for name in ('classes', 'confusions', 'calibration', 'gallery', 'architecture', 'configuration', 'perfect', 'test'):
        assert words[name] in page.text
    assert report_page._percent(found['top1']) in page.text
    low, high = map(report_page._percent, found['interval'])
    assert words['interval'].format(low=low, high=high) in page.text


def test_every_language_has_every_text():
    source = ''.join(path.read_text(encoding='utf-8') for path in [*SOURCES, pathlib.Path(figures.__file__)])
    named = set(re.findall(r'\bt\.(\w+)|words\[\'(\w+)\'\]', source))
    named = {name for pair in named for name in pair if name}
    assert len(named) > 50
    for words in TEXTS.values():
        assert words.keys() == TEXTS['en'].keys() and words.keys() >= named
        for name, text in words.items():
            assert text and set(re.findall(r'{(\w+)}', text)) == set(re.findall(r'{(\w+)}', TEXTS['en'][name])), name
            assert name in named or f"'{name}'" in source, f'nothing shows {name}'


def test_a_thousand_classes_are_usable_and_small():
    names = [f'class number {i}, with the long names that ImageNet gives' for i in range(1000)]
    found, text = page_of(subject_of(names, num_images=3000), num_images=12)
    page = Page(text)
    assert len(text) < 3_000_000 and len(found['classes']) == 1000 and 'class="matrix"' not in text
    shown = len(re.findall('<tr>', text))
    assert 2 * report_page.MAX_ROWS + report_page.MAX_PAIRS <= shown <= 150
    pair = found['confusions'][0]
    assert names[pair['true']] in page.text and str(len(found['confusions'])) in page.text


def test_ten_classes_have_a_matrix():
    found, text = page_of(subject_of(list(map(str, range(10))), num_images=100))
    cells = re.findall(
        r'<td( class="hit")?(?: style="--share:[\d.]+")?>(\d*)</td>',
        text.partition('class="matrix"')[2].partition('<tbody>')[2],
    )
    matrix = np.array([int(count or 0) for _, count in cells[:100]]).reshape(10, 10)
    assert matrix.sum() == 100 and matrix.sum(1).tolist() == [row['count'] for row in found['classes']]
    assert matrix.trace() == round(100 * found['top1'])
    assert [bool(mark) for mark, _ in cells[:100]] == np.eye(10, dtype=bool).ravel().tolist()


@pytest.mark.parametrize(
    'rows,has_steps,said',
    [(ROWS, True, []), (ROWS, False, []), (ROWS[::2], True, ['no_tests']), ([], False, ['no_curves'])],
    ids=['whole', 'older', 'untested', 'new'],
)
def test_what_a_run_has_recorded_so_far(tmp_path, rows, has_steps, said):
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (tmp_path / 'config.json').write_text(json.dumps({name: RUN[name] for name in ('recipe', 'config', 'machine')}))
    if has_steps:
        lines = [','.join(map(str, row.values())) + '\n' for row in STEPS]
        (tmp_path / 'steps.csv').write_text(''.join(['step,loss,accuracy,learning_rate\n', *lines]))
    about = report.about_run(tmp_path)
    train = [row for row in rows if row['split'] == 'train']
    steps = STEPS if has_steps else [{name: row[name] for name in STEPS[0]} for row in train]
    assert (about['curves']['train'], about['curves']['steps']) == (train, steps) and about['config'] == RUN['config']
    found, text = page_of(subject_of('ab', about=about))
    assert [name for name in ('no_tests', 'no_curves') if TEXTS['en'][name] in text] == said
    assert report.summary(found)['epochs'] == (2 if rows else None)
    assert text.count('<svg') == (4 if rows else 1)


def test_a_network_without_a_run_has_no_curves():
    found, text = page_of(subject_of('ab', about={}))
    assert 'curves' not in found and text.count('<svg') == 1 and TEXTS['en']['no_configuration'] in text


def changed(**changes):
    return RUN | {'config': RUN['config'] | changes}


def test_an_unfinished_run_says_its_step():
    for has_ended, step, said in ((False, 33, True), (False, 924, False), (True, 33, False)):
        point = {'step': step, 'last_step': 924, 'epoch': 3, 'has_ended': has_ended}
        found, text = page_of(subject_of('ab', about=RUN | {'checkpoint': point}))
        assert report.summary(found)['steps'] == step and report.summary(found)['epochs'] == 3
        assert ('33 of 924' in text) == said


@pytest.mark.parametrize(
    'file,epoch,accuracies,said',
    [
        ('model.keras', 3, (0.25, 0.75, 0.5), True),
        ('best.keras', 2, (0.25, 0.75, 0.5), True),
        ('model.keras', 1, (0.25,), False),  # nothing was chosen
    ],
)
def test_a_page_says_which_network_of_a_run_it_is_about_and_which_is_the_best(file, epoch, accuracies, said):
    tests = [ROWS[1] | {'epoch': n, 'step': 9 * n, 'accuracy': accuracy} for n, accuracy in enumerate(accuracies, 1)]
    about = RUN | {'curves': RUN['curves'] | {'test': tests, 'train': []}, 'origin': {'file': file, 'epoch': epoch}}
    subject, words = subject_of('ab', about=about), TEXTS['en']
    found, text = page_of(subject)
    assert words['file'].format(file=file, epoch=epoch, step=9 * epoch) in text
    assert (words['best'].format(accuracy='75.00%', epoch=2) in text) == (words['best_note'] in text) == said
    compared, text = comparison_of([subject, subject_of('ab')])
    assert [run['file'] for run in compared['runs']] == [file, None]
    assert (words['best_note'] in text) == (file == 'best.keras')


def test_files_are_shown_from_their_folder_on_and_listed_by_name(tmp_path):
    """Their order in the split is random."""
    subject = subject_of('ab')
    paths = [f'/x y/images/{"ab"[i % 2]}/{97 * i % 100:02}.jpg' for i in range(12)]
    subject = dataclasses.replace(
        subject, test=dataclasses.replace(subject.test, name='folder:/x y/images', paths=paths)
    )
    found, text = page_of(subject)
    assert re.search(r'<span title="/x y/images/(./\d\d.jpg)">\1</span>', text) and ' of /x y/images:' in text
    assert TEXTS['en']['first'] in text and TEXTS['en']['chosen'] not in text
    assert report_page._short_path('/x', '/other/place/a/1.jpg') == 'a/1.jpg'
    report.write(found, subject, report.guess(subject), tmp_path)
    with open(tmp_path / 'images.csv', encoding='utf-8-sig', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['file'] for row in rows] == sorted(paths)
    assert all(paths[int(row['image'])] == row['file'] for row in rows)


def test_runs_on_the_same_files_are_compared_wherever_and_in_which_order_they_are(tmp_path):
    """Two of them are equal. With one file more, the page says how many differ."""
    subject, subjects = subject_of('ab', num_images=4), []
    for name, order in (('one', [0, 1, 2, 3]), ('two', [2, 0, 3, 1]), ('more', [0, 1, 2, 9])):
        (tmp_path / name).mkdir()
        paths = [tmp_path / name / f'{name}{i}.png' for i in order]
        for path, i in zip(paths, order, strict=True):
            path.write_bytes(bytes([max(i, 1)]))
        rows = [min(i, 3) for i in order]
        test = dataclasses.replace(subject.test, images=subject.test.images[rows], labels=subject.test.labels[rows])
        subjects.append(dataclasses.replace(subject, name=name, test=test, content=list(map(str, paths))))
    found, text = comparison_of(subjects)
    assert found['tests'][0]['p'] == 1 and found['tests'][0]['both'] + found['tests'][0]['neither'] == 4
    assert found['tests'][1] == {'reason': 'differing_images', 'count': 2}
    assert TEXTS['en']['differing_images'].format(count=2) in text
    assert 'top-5' not in text and 'top-5' in comparison_of([subject_of('abcdef')] * 2)[1]


def test_a_comparison():
    first = subject_of('abc', name='one')
    names = tuple('abc')
    others = [
        subject_of(
            'abc',
            about=changed(seed=4, spec={'filters': 8}, machine={'model_dir': '/y', 'enable_tensorboard': True}),
            name='two',
        ),
        dataclasses.replace(subject_of('abc', name='three'), content='those'),
        dataclasses.replace(first, name='four', test=first.test.with_classes(names, None, (0, 1, -1)), about={}),
    ]
    found, text = comparison_of([first, *others])
    assert [run['name'] for run in found['runs']] == ['one', 'two', 'three', 'four']
    same, *reasons = found['tests']
    assert same['p'] == 1 and same['both'] + same['neither'] == 12  # equal weights
    assert reasons == [{'reason': 'other_images'}, {'reason': 'other_classes'}]
    assert found['differences'] == {'seed': [3, 4, 3, None], 'spec.filters': [16, 8, 16, None]}
    page = Page(text)
    for name in ('other_images', 'other_classes', 'no_configuration'):
        assert TEXTS['en'][name] in page.text
    assert page.tags.count('svg') == 3 and page.text.count('2 two') == 2 + 3 and page.text.count('4 four') == 2
    assert TEXTS['zh']['mcnemar'] in comparison_of([first, others[0]], 'zh')[1]


@pytest.mark.parametrize('language', TEXTS)
def test_what_limits_a_test_is_said_above_the_results(language):
    """In a comparison, with the numbers of the runs that it is about; without such lines, there is no heading."""
    words, lines = TEXTS[language], ['<b>seen</b> before', 'set aside']
    subjects = [dataclasses.replace(subject_of('ab'), notes=lines[:count]) for count in (2, 1, 0)]
    pages = page_of(subjects[0], language)[1], comparison_of(subjects, language)[1]
    for page, marks in zip(pages, (('', ''), ('1, 2: ', '1: ')), strict=True):
        text = Page(page).text
        places = [text.index(part) for part in (words['notes'], *map(str.__add__, marks, lines))]
        assert places == sorted(places) and places[-1] < text.index(f'\n{words["results"]}\n')
    assert page_of(subjects[0])[0]['notes'] == lines
    assert words['notes'] not in page_of(subjects[2], language)[1]


def test_a_comparison_names_a_normalization_as_its_flag_does():
    configs = [changed(input_normalization=PUBLISHED[name]) for name in ('torch', 'inception')]
    found, text = comparison_of([subject_of('ab', about=about, name=str(i)) for i, about in enumerate(configs)])
    assert found['differences'] == {'input_normalization': [PUBLISHED['torch'], PUBLISHED['inception']]}
    assert 'torchinception' in Page(text).text and 'affine:' not in text


def test_the_files_of_a_comparison(tmp_path):
    found, _ = comparison_of([subject_of('ab', name='one'), subject_of('ab', about=changed(seed=4), name='two')])
    report.write_comparison(found, tmp_path)
    assert json.loads((tmp_path / 'comparison.json').read_text(encoding='utf-8')) == found
    with open(tmp_path / 'comparison.csv', encoding='utf-8', newline='') as file:
        rows = {row['field']: (row['one'], row['two']) for row in csv.DictReader(file)}
    assert rows['seed'] == ('3', '4') and rows['mcnemar.p'] == ('', '1.0') and rows['parameters'] == ('1234', '1234')
    results = found['runs'][0]['results']
    low, high = results['interval']
    numbers = {'accuracy': results['accuracy'], 'interval.low': low, 'interval.high': high}  # no cell has two
    assert {name: rows[name][0] for name in numbers} == {name: str(number) for name, number in numbers.items()}


def test_runs_have_short_names_that_tell_them_apart():
    assert report_page.names_of(['/r/a/model', '/r/b/model']) == ['a/model', 'b/model']
    assert report_page.names_of(['x/a', 'y/b', 'resnet50']) == ['a', 'b', 'resnet50']
    assert report_page.names_of(['a', 'a']) == ['a', 'a']


def test_without_a_package_the_remedy_is_said(monkeypatch):
    monkeypatch.setattr(report, 'PACKAGES', {'no_such_module': 'jinja2', 'json': 'json'})
    message = message_of(report.require_packages)
    assert 'jinja2' in message and 'json' not in message.replace('jinja2', '') and "'.[report]'" in message


def test_feature_maps_of_a_file_and_filters_of_each_kind(tmp_path):
    Image.new('RGB', (50, 40), 'red').save(tmp_path / 'red.png')
    subject = subject_of('abcd')
    looked = report_page.inside(subject, tmp_path / 'red.png')
    assert looked['name'] == str(tmp_path / 'red.png') and looked['filters'].startswith('data:image/png')
    assert [(row['layer'], row['height'], row['count']) for row in looked['maps']] == [
        ('stem', 32, 4),
        ('group1', 32, 4),
        ('group2', 16, 8),
    ]
    assert len(looked['guesses']) == 3 and looked['guesses'][0][1] >= looked['guesses'][1][1]
    (tmp_path / 'text.png').write_text('x')
    assert 'text.png' in message_of(report_page.inside, subject, tmp_path / 'text.png')


def test_a_mosaic_scales_each_image_and_parts_them_by_transparent_lines():
    images = np.zeros((9, 2, 2, 1), np.float32)
    images[:, 0, 0, 0] = np.arange(1, 10)
    uri = report_page._mosaic(images)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2]))))
    assert pixels.shape == (5, 8 * 3 - 1, 2)
    assert (pixels[0, ::3, 0] == 255).all() and pixels[0, 1, 0] == 0  # each to its full range
    assert (pixels[2, :, 1] == 0).all() and (pixels[:, 2, 1] == 0).all() and (pixels[3, 3:, 1] == 0).all()


def test_a_fraction_has_one_form_everywhere_and_classes_without_images_are_counted():
    subject = subject_of('abc')
    subject = dataclasses.replace(subject, test=subject.test.with_classes(tuple('abc'), None, (0, 1, -1)))
    found, text = page_of(subject)
    for shown in (text, comparison_of([subject, subject])[1]):
        for share in (found['top1'], found['mean']['f1'], *found['interval']):
            assert report_page._percent(share) in Page(shown).text
    assert {f'{row["f1"]:.2%}' for row in found['classes'][:2]} <= set(re.findall(r'>([\d.]+%)<', text))
    assert TEXTS['en']['tested_classes'].format(count=2, total=3) in text


@pytest.mark.parametrize(
    'value,expected',
    [
        ('own_head/run_1', 'own_<wbr>head/<wbr>run_1'),
        ('spec.filters', 'spec.<wbr>filters'),
        ('<b>', '&lt;b&gt;'),
        (0.5, '0.5'),
        (None, '–'),
    ],
)
def test_long_names_break_at_their_separators(value, expected):
    assert report_page._breaks(value) == expected


def test_images_of_other_classes_make_no_report():
    subject = subject_of(['cat', 'dog'])
    others = dataclasses.replace(subject, test=subject.test.with_classes(('cat', 'dog'), None, [-1, -1]))
    assert re.search('no image of .*net <1>; pass', message_of(report.guess, others))
