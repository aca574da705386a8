"""Checkpoints of the real tf-slim, with random weights and statistics, converted with equal logits."""

import os
import pathlib
import sys

import numpy as np
import pytest
from fixtures import programs
from fixtures.conversion import assert_equal, our_model

from checkpoints_tools import from_slim

pytestmark = pytest.mark.parity
SIZES = (64, 75)  # pixels; an even one and an odd one
WRITER = pathlib.Path(__file__).parents[1] / 'fixtures' / 'slim_writer.py'


@pytest.mark.parametrize(
    'net,num_classes,file_version', [('resnet_v1_50', 1000, 1), ('resnet_v1_101', 1000, 2), ('resnet_v2_50', 1001, 2)]
)
def test_same_logits_as_slim(tmp_path, net, num_classes, file_version):
    command = [sys.executable, WRITER, net, str(num_classes), str(file_version), str(tmp_path), *map(str, SIZES)]
    end = programs.run(command, env=os.environ | {'TF_USE_LEGACY_KERAS': '1'})
    assert end.code == 0, end.err[-3000:]
    expected = np.load(tmp_path / 'expected.npz')
    shapes = from_slim.shapes(tmp_path)
    variables = from_slim.read(tmp_path)
    source = from_slim.describe(shapes, net)
    assert source.num_classes == num_classes and from_slim.ignored(shapes).keys() == {'global_step'}
    model, _ = our_model(from_slim, variables, shapes, source)
    for size in SIZES:
        images, logits = expected[f'images{size}'], expected[f'logits{size}']
        assert_equal(from_slim.run(variables, images, source), logits)
        assert_equal(model(images).numpy(), logits)
