"""report_main on runs and on converted networks, in this process, and --report of a training."""

import csv
import html
import json
import shutil
import sys

import numpy as np
import pytest
from fixtures import programs
from fixtures.networks import TINY, save_network
from PIL import Image

from official_resnet import checkpoints, resnet_spec
from official_resnet.command_line import train_program
from official_resnet.reports import report

FILES = {'report.html', 'report.json', 'per_class.csv', 'confusion.csv', 'images.csv'}


def report_in(folder):
    return json.loads((folder / 'report.json').read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def reported(source, cifar_dir, tmp_path_factory):
    """A copy of a run's model_dir with its report in it, and what the program printed."""
    model_dir = tmp_path_factory.mktemp('reported') / 'run'
    shutil.copytree(source, model_dir)
    return model_dir, programs.succeed(f'report_main {model_dir} --num_images=2')


def test_a_run_is_tested_on_its_own_images(reported):
    model_dir, out = reported
    assert {path.name for path in model_dir.iterdir()} >= FILES
    assert all(f'  {model_dir / name}\n' in out for name in FILES)
    found = report_in(model_dir)
    rows = checkpoints.read_metrics(model_dir)
    last = [row for row in rows if row['split'] == 'test'][-1]
    assert (found['n'], found['dataset'], found['name']) == (30, 'cifar10', str(model_dir))
    assert found['top1'] == pytest.approx(last['accuracy']) and found['loss'] == pytest.approx(last['loss'], rel=1e-4)
    assert found['curves']['test'] == [row for row in rows if row['split'] == 'test']
    assert [row['step'] for row in found['curves']['steps']] == [*range(1, last['step'] + 1)] and found['config'][
        'batch_size'
    ] == 16
    assert found['architecture']['head'] == ['mean, 10 logits'] and found['machine']['tensorflow']
    with open(model_dir / 'images.csv', encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [int(row['image']) for row in rows] == list(range(30)) and {row['file'] for row in rows} == {''}
    assert sum(row['label'] == row['guess'] for row in rows) == pytest.approx(30 * found['top1'])
    page = (model_dir / 'report.html').read_text(encoding='utf-8')
    shown = sum(map(len, found['gallery'].values()))
    assert page.count('<svg') == 4 and page.count('data:image/jpeg') == 2 * shown + 1  # pairs, and the chosen image
    assert len(found['gallery']['surest_mistakes']) == 2
    assert page.count('data:image/png') == 1 + 4  # filters; maps of stem and three groups


def test_the_network_of_the_best_epoch_in_chinese_with_an_image_of_your_own(reported, tmp_path):
    model_dir, _ = reported
    Image.new('RGB', (40, 50), 'red').save(tmp_path / '<b>.png')
    image = f'--image={tmp_path}/<b>.png --num_images=0'
    programs.succeed(f'report_main {model_dir}/best.keras --language=zh {image}')
    page = (model_dir / 'best_report' / 'report.html').read_text(encoding='utf-8')
    assert 'lang="zh-CN"' in page and '&lt;b&gt;.png' in page and 'data:image/jpeg' in page
    assert report_in(model_dir / 'best_report')['curves'] == report_in(model_dir)['curves']
    origin = report_in(model_dir / 'best_report')['origin']
    assert (origin['epoch'], origin['file'], report_in(model_dir)['origin']['file']) == (1, 'best.keras', 'model.keras')


STREAMED = resnet_spec.ResNetSpec((1, 1, 1, 1), filters=4, stem='imagenet')


@pytest.mark.parametrize('spec,size', [(TINY, 16), (STREAMED, 32)], ids=['in memory', 'streamed'])
def test_a_converted_network_on_a_folder(tmp_path, spec, size):
    random = np.random.default_rng(0)
    for name, count in (('cat', 3), ('dog', 2), ('emu', 1)):
        (tmp_path / 'images' / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (40, 44, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'images' / name / f'{i}.jpg')
    save_network(tmp_path, ['dog', 'gnu', 'cat'], (size, size, 3), spec)
    (tmp_path / 'model.keras').rename(tmp_path / 'net.keras')
    (tmp_path / 'model.card.json').rename(tmp_path / 'net.card.json')
    source = f'--image_folder={tmp_path}/images'
    if size == 32:  # the same images, listed
        names = [f'images/{path.parent.name}/{path.name},{path.parent.name}' for path in tmp_path.rglob('*.jpg')]
        (tmp_path / 'list.csv').write_text('\n'.join(['path,label', *names]))
        source = f'--image_list={tmp_path}/list.csv'
    out = programs.succeed(f'report_main {source} {tmp_path}/net.keras --num_images=9')
    assert '2 of the 3 classes' in out and "'emu'" in out
    found = report_in(tmp_path / 'net_report')
    assert (found['n'], found['left_out']) == (5, 1) and 'curves' not in found
    assert [(row['name'], row['count']) for row in found['classes']] == [('dog', 2), ('gnu', 0), ('cat', 3)]
    with open(tmp_path / 'net_report' / 'images.csv', encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    assert all(f'/images/{row["label"]}/' in row['file'] for row in rows) and len({row['file'] for row in rows}) == 5
    page = (tmp_path / 'net_report' / 'report.html').read_text(encoding='utf-8')
    assert page.count('data:image/jpeg') == 2 * 5 + 1 and rows[0]['file'] in page


def test_a_comparison_of_runs_and_a_network_on_the_same_images(reported, cifar_dir, tmp_path):
    model_dir, _ = reported
    names = 'airplane automobile bird cat deer dog frog horse ship truck'.split()
    save_network(tmp_path, names, (32, 32, 3))
    data = f'--dataset=cifar10 --data_dir={cifar_dir} --output_dir={tmp_path}/out'
    out = programs.succeed(f'report_main {model_dir} {model_dir}/best.keras {tmp_path}/model.keras {data}')
    names = {'comparison.html', 'comparison.json', 'comparison.csv'}
    assert {path.name for path in (tmp_path / 'out').iterdir()} == names and 'best.keras: top-1' in out
    found = json.loads((tmp_path / 'out' / 'comparison.json').read_text(encoding='utf-8'))
    first, best, other = (run['results']['accuracy'] for run in found['runs'])
    hits = [round(30 * accuracy) for accuracy in (first, best, other)]
    same, different = found['tests']
    assert same['p'] == 1 and same['both'] == hits[0] == hits[1]
    assert different['both'] + different['only_first'] == hits[0]
    assert different['both'] + different['only_other'] == hits[2]
    assert sum(different[name] for name in ('both', 'neither', 'only_first', 'only_other')) == 30
    assert found['differences'] == {}  # one run, and a network without one


def test_data_that_has_moved_is_found_again(reported, cifar_dir, tmp_path):
    model_dir = tmp_path / 'moved'
    shutil.copytree(reported[0], model_dir)
    about = json.loads((model_dir / 'config.json').read_text())
    about['config']['machine']['data_dir'] = str(tmp_path / 'gone')
    (model_dir / 'config.json').write_text(json.dumps(about))
    assert f"'{tmp_path}/gone' .*--data_dir".split(' .*')[0] in programs.mistake(f'report_main {model_dir}')
    programs.succeed(f'report_main {model_dir} --data_dir={cifar_dir} --num_images=0 --output_dir={tmp_path}/out')
    assert report_in(tmp_path / 'out')['top1'] == report_in(reported[0])['top1']
    (model_dir / 'config.json').write_text('{}')
    assert f"{model_dir}/config.json' is damaged" in programs.mistake(f'report_main {model_dir}')


def test_what_limits_the_test_of_a_run_is_in_the_terminal_the_page_and_the_json(tmp_path):
    """Which images were set aside, whether the training may have seen them, and copies; also in a comparison."""
    random = np.random.default_rng(0)
    for name in ('a/1', 'a/2', 'a/3', 'b/1', 'b/2', 'b/3'):
        (tmp_path / 'images' / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / 'images' / f'{name}.png')
    flags = f'--image_folder={tmp_path}/images --image_size=8 -rs=8 --shortcut=A -bs=4 --max_train_steps=4'
    programs.succeed(f'cifar10_main {flags} --recipe=demo --bn_momentum=0.1 --model_dir={tmp_path}/run')
    for path in sorted((tmp_path / 'images' / 'a').iterdir()):
        shutil.copy(path, path.with_name(f'copy{path.name}'))
    out = programs.succeed(f'report_main {tmp_path}/run --num_images=0')
    notes = report_in(tmp_path / 'run')['notes']
    assert ['2 of the 9 ' in notes[0], 'may have seen' in notes[1], '1 of 2' in notes[2]] == [True] * 3
    page = (tmp_path / 'run' / 'report.html').read_text(encoding='utf-8')
    assert all(line in out and html.escape(line).replace('&#x27;', '&#39;') in page for line in notes)
    programs.succeed(f'report_main {tmp_path}/run {tmp_path}/run/best.keras --output_dir={tmp_path}/out')
    found = json.loads((tmp_path / 'out' / 'comparison.json').read_text(encoding='utf-8'))
    assert [run['notes'] for run in found['runs']] == [notes] * 2


def test_what_is_missing_is_said_before_a_training(monkeypatch, cifar_dir, tmp_path):
    monkeypatch.setattr(report, 'PACKAGES', {'no_such_module': 'jinja2'})
    for command in (
        f'cifar10_main --report --data_dir={cifar_dir} --model_dir={tmp_path}/new',
        f'report_main {tmp_path}',
    ):
        message = programs.mistake(command)
        assert 'jinja2' in message and "'.[report]'" in message
    assert not (tmp_path / 'new').exists()


def test_without_a_network_or_images_the_remedy_is_said():
    assert 'model_dir' in programs.mistake('report_main --language=zh')
    message = programs.mistake('report_main akamaster/resnet20')  # before it is fetched
    assert 'akamaster/resnet20' in message and '--image_folder' in message and '--dataset' in message


@pytest.mark.parametrize('fails', [False, True])
def test_a_training_makes_its_report_in_a_process_and_survives_its_failure(monkeypatch, cifar_dir, tmp_path, fails):
    """The process itself is that of the program; here a script stands for it, which takes no time."""
    script, calls = tmp_path / 'python', tmp_path / 'calls'
    lines = ['#!/bin/sh', f'echo "$CUDA_VISIBLE_DEVICES $@" >> {calls}', 'echo report_main: no space >&2']
    script.write_text('\n'.join([*lines, f'exit {int(fails)}', '']))
    script.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(script))
    flags = f'--data_dir={cifar_dir} -rs=8 --shortcut=A -bs=16 --max_train_steps=4 --bn_momentum=0.1'
    out = programs.succeed(f'cifar10_main {flags} --nodownload --report --model_dir={tmp_path}/run')
    assert calls.read_text().splitlines()[-1] == f'-1 -P -m official_resnet.report_main -- {tmp_path}/run'
    assert (f'  {tmp_path}/run/report.html\n' in out) != fails
    assert ('no report.html: report_main: no space\n' in out) == fails and (tmp_path / 'run' / 'model.keras').exists()


@pytest.mark.whole_runs
def test_the_process_of_a_training_makes_the_page(source, tmp_path):
    shutil.copytree(source, tmp_path / '-a b')
    assert train_program.made('report_main', tmp_path / '-a b', 'report.html') == [tmp_path / '-a b' / 'report.html']
    assert (tmp_path / '-a b' / 'report.html').read_text(encoding='utf-8').startswith('<!doctype html>')
