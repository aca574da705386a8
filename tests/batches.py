"""What the tests of the input share: splits, their batches, and messages."""

import numpy as np
import pytest

from official_resnet import errors
from official_resnet.inputs import in_memory


def numbered(num_images, shape=(4, 4, 1), normalization='none'):
    """Return a split in which image i is filled with i and has the label i."""
    labels = np.arange(num_images, dtype=np.int32)
    images = np.tile(labels.astype(np.uint8).reshape(-1, 1, 1, 1), (1, *shape))
    names = tuple(map(str, labels))
    return in_memory.InMemorySplit(images, labels, num_images, 'numbered', names, normalization)


def labels_of(dataset):
    return [labels.tolist() for _, labels in dataset.as_numpy_iterator()]


def assert_same_batches(dataset, expected):
    got = list(dataset.as_numpy_iterator())
    assert len(got) == len(expected)
    for (images, labels), (expected_images, expected_labels) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(labels, expected_labels)
        assert images.tobytes() == expected_images.tobytes()


def message_of(function, *args):
    """Return the one line of the UserError that a call ends with."""
    with pytest.raises(errors.UserError) as caught:
        function(*args)
    assert '\n' not in str(caught.value)
    return str(caught.value)
