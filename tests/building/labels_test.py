"""building.labels: lists of classes; and the same synsets from a list, the development kit and the validation boxes."""

import builtins
import io
import tarfile

import numpy as np
import pytest
from fixtures import ilsvrc

from official_resnet.building import downloads, labels
from official_resnet.errors import UserError

SYNSETS = ('n01440764', 'n02092002', 'n02105855', 'n03018349')
ORDER = [SYNSETS[i] for i in (2, 0, 3, 3, 1, 0, 2)]
LIST, DEVKIT, XMLS = labels.FILES


def test_lists_of_the_package():
    classes, texts = labels.read_classes(), labels.read_texts()
    assert len(classes) == 1000 and classes == sorted(classes) == list(texts)
    assert classes[0] == 'n01440764' and texts['n01440764'].startswith('tench')


def test_mistakes_in_lists(tmp_path):
    path = tmp_path / 'list'
    for text, read_file, message in (
        (b'a\nb\na\n', labels.read_classes, "'a' 2 times"),
        (b'\n', labels.read_classes, 'is empty'),
        (b'\xff\n', labels.read_classes, 'not UTF-8'),
        (b'a\tb\nc d\n', labels.read_texts, 'no tabulator in line 2'),
    ):
        path.write_bytes(text)
        with pytest.raises(UserError, match=message):
            read_file(path)
    path.write_bytes(b' a\n\nb \r\n')
    assert labels.read_classes(path) == ['a', 'b']


def xmls(numbers=(1, 2, 3, 4, 5, 6, 7), **changed):
    return {
        f'val/ILSVRC2012_val_{number:08d}.xml': changed.get(f'n{number}')
        or ilsvrc.xml(objects=[(ORDER[number - 1], 1, 1, 9, 9)])
        for number in reversed(numbers)
    }


def test_all_sources_agree(tmp_path):
    (tmp_path / 'a.txt').write_text('\n'.join(ORDER))
    (tmp_path / 'devkit.tar.gz').write_bytes(ilsvrc.devkit(SYNSETS, ORDER))
    (tmp_path / 'xmls.tgz').write_bytes(ilsvrc.tar_bytes(xmls(), mode='w:gz'))
    for name in ('a.txt', 'devkit.tar.gz', 'xmls.tgz'):
        assert labels.read_validation(tmp_path / name) == ORDER, name


def test_find_prefers_the_list_wherever_it_stands(tmp_path):
    raw = tmp_path / 'raw-data'
    raw.mkdir()
    plan = downloads.Plan(tmp_path, {})
    assert plan.find_labels() is None
    for folder, name in ((tmp_path, XMLS), (raw, DEVKIT), (raw, LIST), (tmp_path, LIST)):
        (folder / name).write_text('x')
        assert plan.find_labels() == folder / name
    for name in labels.FILES:
        assert name in labels.REMEDY


def devkit_without(name):
    buffer = io.BytesIO(ilsvrc.devkit(SYNSETS, ORDER))
    with tarfile.open(fileobj=buffer) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if not member.name.endswith(name)}


CASES = {
    'absent': (None, 'does not exist; put'),
    'empty': (b'', 'is empty'),
    'words': (b'n01440764\ntench\n', "'tench' in line 2"),
    'bytes': (bytes(range(256)), 'in line 1, no synset'),
    'cut off': (lambda: ilsvrc.devkit(SYNSETS, ORDER)[:-60], 'cut'),
    'no meta': (lambda: ilsvrc.tar_bytes(devkit_without('meta.mat')), 'has no meta.mat'),
    'no truth': (lambda: ilsvrc.tar_bytes(devkit_without('truth.txt')), 'has no ILSVRC2012_validation_ground'),
    'meta': (
        lambda: ilsvrc.tar_bytes({**devkit_without('meta.mat'), 'a/meta.mat': b'x' * 300}),
        'meta.mat in .* damaged',
    ),
    'truth': (
        lambda: ilsvrc.tar_bytes(
            {**devkit_without('truth.txt'), 'a/ILSVRC2012_validation_ground_truth.txt': b'1\n9999\n'}
        ),
        "'9999' as the class of image 2",
    ),
    'truth of words': (
        lambda: ilsvrc.tar_bytes({**devkit_without('truth.txt'), 'a/ILSVRC2012_validation_ground_truth.txt': b'one\n'}),
        "'one' as the class",
    ),
    'empty truth': (
        lambda: ilsvrc.tar_bytes({**devkit_without('truth.txt'), 'a/ILSVRC2012_validation_ground_truth.txt': b''}),
        'empty list',
    ),
    'gap': (lambda: ilsvrc.tar_bytes(xmls([1, 2, 4, 6])), 'lacks 2 XML files, as ILSVRC2012_val_00000003.xml'),
    'broken xml': (lambda: ilsvrc.tar_bytes(xmls(n2=b'<a>')), "00000002.xml' .* is broken"),
    'no object': (lambda: ilsvrc.tar_bytes(xmls(n3=ilsvrc.xml())), 'names no synset but None'),
    'other name': (lambda: ilsvrc.tar_bytes(xmls(n3=ilsvrc.xml(objects=[('dog', 1, 1, 2, 2)]))), "but 'dog'"),
}


@pytest.mark.parametrize('case', CASES)
def test_mistakes(tmp_path, case):
    data, message = CASES[case]
    if data is not None:
        (tmp_path / 'labels').write_bytes(data() if callable(data) else data)
    with pytest.raises(UserError, match=message) as error:
        labels.read_validation(tmp_path / 'labels')
    assert '\n' not in str(error.value)


def test_without_scipy(tmp_path, monkeypatch):
    (tmp_path / 'devkit.tar.gz').write_bytes(ilsvrc.devkit(SYNSETS, ORDER))
    real = builtins.__import__

    def no_scipy(name, *arguments, **options):
        if name.startswith('scipy'):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, '__import__', no_scipy)
    with pytest.raises(UserError, match='pip install scipy'):
        labels.read_validation(tmp_path / 'devkit.tar.gz')


def test_the_numbers_of_the_kit_are_not_labels(tmp_path):
    """ILSVRC2012_ID is not the place in the sorted list: who takes it for one mislabels nearly all pictures."""
    (tmp_path / 'devkit.tar.gz').write_bytes(ilsvrc.devkit(SYNSETS, ORDER))
    with tarfile.open(tmp_path / 'devkit.tar.gz') as tar:
        member = next(member for member in tar if member.name.endswith('.txt'))
        numbers = np.array(tar.extractfile(member).read().split(), int)
    assert [SYNSETS[number - 1] for number in numbers] != ORDER
