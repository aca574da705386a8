"""What the flags of a program of encoded images mean, which are streamed."""

from collections.abc import Mapping
from typing import Any

from official_resnet.inputs.affine import PUBLISHED
from official_resnet.inputs.views import Views
from official_resnet.training.config import PRETRAINED, part_of

PARTS = (Views,)


def fields_of(chosen: Mapping[str, Any], dataset: str, has_normalization: bool) -> dict[str, Any]:
    """Return the fields of TrainConfig that flags of images, `chosen`, decide.

    Without has_normalization, --input_normalization was not given, and that of a pretrained net is taken.
    """
    if dataset.startswith('synthetic'):
        return {'image_size': None, 'num_classes': None, 'background': False, 'normalization': None}
    views = part_of(Views, chosen)
    if 'size' in views:
        views.setdefault('test_size', views['size'])
    normalization = PUBLISHED[chosen.get('input_normalization', 'official')]
    if chosen.get(PRETRAINED) and not has_normalization:
        normalization = None
    fields = {'views': Views(**views), 'image_size': None, 'normalization': normalization}
    is_imagenet = dataset.removeprefix('tfds:').startswith('imagenet')
    if is_imagenet and chosen.get('num_classes') in (1000, 1001):  # with the background or not, as official/resnet
        fields |= {'background': chosen['num_classes'] == 1001, 'num_classes': None}
    return fields
