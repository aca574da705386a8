"""RandAugment against timm's table of operations. CI installs the peers."""

import random

import numpy as np
import pytest
from fixtures.torch_peers import import_timm
from PIL import Image

from official_resnet.inputs import policies

pytestmark = pytest.mark.parity


def timm_operations(config):
    module = import_timm('data.auto_augment')
    return module.rand_augment_transform(config, {'img_mean': policies.RAND_FILL}).ops


@pytest.mark.parametrize('increasing', ['', '-inc1'])
@pytest.mark.parametrize('strength', [0, 3, 7, 10])
def test_each_operation_is_timms(increasing, strength, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    operations = timm_operations(f'rand-m{strength}-p1{increasing}')
    names = [operation.name.removesuffix('Increasing').removesuffix('Rel') for operation in operations]
    assert sorted(names) == sorted(policies.RAND)
    for name, operation in zip(names, operations, strict=True):
        for coin in (0.2, 0.8):
            monkeypatch.setattr(random, 'random', lambda coin=coin: coin)
            if name == 'Posterize' and strength == (10 if increasing else 0):
                continue  # to 0 bits, which Pillow refuses since its version 13
            monkeypatch.setattr(random, 'choice', lambda words: words[1])
            place = (policies.RAND.index(name) + 0.5) / len(policies.RAND)
            draws = np.float32([[[place, 0, coin, 0.5, 0.9]]])
            ours = policies.change(image[None], draws, f'rand-m{strength}-n1-p1{increasing}')
            np.testing.assert_array_equal(ours[0], np.asarray(operation(Image.fromarray(image))), err_msg=name)
