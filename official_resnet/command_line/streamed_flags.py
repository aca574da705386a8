"""What the flags for streamed images mean, which imagenet_main and image_folder_main have."""

from collections.abc import Mapping
from typing import Any

from absl import flags

from official_resnet.errors import UserError
from official_resnet.inputs.affine import PUBLISHED
from official_resnet.inputs.views import Views
from official_resnet.training.config import PRETRAINED, flags_of, part_of


def fields(values: flags.FlagValues, chosen: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """Return the fields of TrainConfig that depend on the flags for streamed images; `chosen` is {flag: value}."""
    if dataset.startswith('synthetic'):
        for flag in ('num_classes', 'background_class', 'input_normalization', *flags_of(Views)):
            if values[flag].present:
                raise UserError(f'--{flag} needs encoded images, and --use_synthetic_data has none; leave it out')
        return {'image_size': None, 'num_classes': None, 'background': False, 'normalization': None}
    views = part_of(Views, chosen)
    if 'size' in views:
        views.setdefault('test_size', views['size'])
    uses_pretrained = chosen.get(PRETRAINED) and not values['input_normalization'].present
    normalization = None if uses_pretrained else PUBLISHED[chosen.get('input_normalization', 'official')]
    found: dict[str, Any] = {'views': Views(**views), 'image_size': None, 'normalization': normalization}
    is_imagenet = dataset.removeprefix('tfds:').startswith('imagenet')
    if is_imagenet and chosen.get('num_classes') in (1000, 1001):  # without or with the background (official/resnet)
        if values['background_class'].present and values.background_class != (chosen['num_classes'] == 1001):
            given = f'--{"" if values.background_class else "no"}background_class'
            raise UserError(f'{given} does not have {chosen["num_classes"]} logits; leave --num_classes out')
        found |= {'background': chosen['num_classes'] == 1001, 'num_classes': None}
    return found
