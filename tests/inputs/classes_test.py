"""Classes of two sources are matched by id, then by name, never by position."""

import pytest
from fixtures.batches import message_of
from fixtures.tiny_training import synthetic_split

from official_resnet.inputs import classes

CRANES = ('crane', 'tench', 'crane'), ('n02012849', 'n01440764', 'n03126707')


@pytest.mark.parametrize(
    'ours, theirs, outputs',
    [
        ((('dog', 'ship'), None), (('cat', 'dog', 'ship'), None), [1, 2]),
        ((('cat', 'dog'), None), (('cat', 'dog'), None), [0, 1]),
        ((('cat', 'cow', 'Dog'), None), (('dog', 'cat'), None), [1, -1, -1]),
        ((('cafe\u0301', 'a'), None), (('a', 'caf\u00e9'), None), [1, 0]),  # NFD and NFC
        ((('goldfish', 'mine'), ('n01443537', 'n01440764')), (('tench', 'goldfish'), ('n01440764', 'x')), [1, 0]),
        ((('n03126707', 'n01440764'), None), CRANES, [2, 1]),  # a folder named by ids
        (CRANES, (('n01440764', 'n02012849', 'n03126707'), None), [1, 0, 2]),
        ((('n01440764',), None), (('cat', 'tench'), None), [1]),  # by ILSVRC2012's name
        ((('crane', 'tench'), None), CRANES, [-1, 1]),  # which of the two?
        (CRANES, CRANES, [0, 1, 2]),
        ((('crane', 'tench', 'crane'), None), CRANES, [0, 1, 2]),  # the same list
    ],
)  # fmt: skip
def test_matches(ours, theirs, outputs):
    assert classes.match(*ours, *theirs) == outputs


def test_a_class_of_one_source_alone_is_named():
    split = synthetic_split(8, num_classes=3)
    aligned = classes.align(split, ('2', 'x', '0', '1'), None, 'a network')
    assert aligned.labels.tolist() == [{0: 2, 1: 3, 2: 0}[label] for label in split.labels.tolist()]
    assert (aligned.num_classes, aligned.class_names) == (4, ('2', 'x', '0', '1'))
    assert "'0', '2'" in message_of(classes.align, split, ('1', 'x'), None, 'a network')
    many = ('1', 'x', '2 ', *(f'class {i}' for i in range(1000)))
    assert "'2 '" in message_of(classes.align, split, many, None, 'a network')  # the nearest
