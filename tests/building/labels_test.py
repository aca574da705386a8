"""building.labels reads lists of classes, and the same synsets from a list, the devkit and the validation boxes."""

import io
import sys
import tarfile

import pytest
from fixtures import ilsvrc

from official_resnet.building import downloads, labels
from official_resnet.errors import UserError

SYNSETS = ('n01440764', 'n02092002', 'n02105855', 'n03018349')
ORDER = [SYNSETS[i] for i in (2, 0, 3, 3, 1, 0, 2)]
LIST, DEVKIT, XMLS = labels.FILES
KIT = ilsvrc.devkit(SYNSETS, ORDER)
TRUTH = 'a/ILSVRC2012_validation_ground_truth.txt'


def test_lists_of_the_package():
    classes, texts = labels.read_classes(), labels.read_texts()
    assert len(classes) == 1000 and classes == sorted(classes) == list(texts)
    assert classes[0] == 'n01440764' and texts['n01440764'].startswith('tench')


def test_lists_of_lines(tmp_path):
    path = tmp_path / 'list'
    path.write_bytes(b' a\n\nb \r\n')
    assert labels.read_classes(path) == ['a', 'b']
    path.write_bytes(b'\n')
    with pytest.raises(UserError, match="list'.*is empty"):
        labels.read_classes(path)


def xmls(numbers=range(1, 8), mode='w', **changed):
    files = {number: ilsvrc.xml(objects=[(ORDER[number - 1], 1, 1, 9, 9)]) for number in reversed(numbers)}
    files |= {int(name[1:]): data for name, data in changed.items()}
    return ilsvrc.tar_bytes({f'val/ILSVRC2012_val_{number:08d}.xml': data for number, data in files.items()}, mode=mode)


def test_all_sources_agree(tmp_path):
    for data in ('\n'.join(ORDER).encode(), KIT, xmls(mode='w:gz')):
        (tmp_path / 'labels').write_bytes(data)
        assert labels.read_validation(tmp_path / 'labels') == ORDER


def test_the_list_is_preferred_wherever_it_is(tmp_path):
    raw = tmp_path / 'raw-data'
    raw.mkdir()
    plan = downloads.Plan(tmp_path, {})
    assert plan.find_labels() is None
    for folder, name in ((tmp_path, XMLS), (raw, DEVKIT), (raw, LIST), (tmp_path, LIST)):
        (folder / name).write_text('x')
        assert plan.find_labels() == folder / name and name in labels.REMEDY


def kit_without(suffix, **more):
    with tarfile.open(fileobj=io.BytesIO(KIT)) as tar:
        parts = {member.name: tar.extractfile(member).read() for member in tar if not member.name.endswith(suffix)}
    return ilsvrc.tar_bytes({**parts, **more})


CASES = {
    'absent': (None, 'does not exist; put'),
    'empty': (b'', 'is empty'),
    'cut off': (KIT[:-60], 'cut'),
    'no truth': (kit_without('truth.txt'), 'ILSVRC2012_validation_ground'),
    'damaged meta': (kit_without('meta.mat', **{'a/meta.mat': b'x' * 300}), 'meta.mat in .*damaged'),
    'other truth': (kit_without('truth.txt', **{TRUTH: b'1\n9999\n'}), "'9999' .* image 2"),
    'empty truth': (kit_without('truth.txt', **{TRUTH: b''}), 'empty'),
    'gap': (xmls([1, 2, 4, 6]), '2 XML files.* ILSVRC2012_val_00000003.xml'),
    'broken xml': (xmls(n2=b'<a>'), "00000002.xml' in .*broken"),
    'other name': (xmls(n3=ilsvrc.xml(objects=[('dog', 1, 1, 2, 2)])), "00000003.xml' in .*'dog'"),
}


@pytest.mark.parametrize('case', CASES)
def test_mistakes(tmp_path, case):
    data, pattern = CASES[case]
    if data is not None:
        (tmp_path / 'labels').write_bytes(data)
    with pytest.raises(UserError, match=pattern) as error:
        labels.read_validation(tmp_path / 'labels')
    assert '\n' not in str(error.value)


def test_without_scipy(tmp_path, monkeypatch):
    (tmp_path / 'devkit.tar.gz').write_bytes(KIT)
    monkeypatch.setitem(sys.modules, 'scipy', None)
    with pytest.raises(UserError, match='pip install scipy'):
        labels.read_validation(tmp_path / 'devkit.tar.gz')
