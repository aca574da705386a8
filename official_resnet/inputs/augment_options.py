"""Options of augmentation. The functions that use them are in augmentation and batch_augmentation."""

import dataclasses
import functools
import re

from official_resnet.errors import UserError

_RAND = re.compile(r'rand(-(m(\d|10)|n[1-9]|p(0|1|0?\.\d+)|mstd\d\d?(\.\d+)?|inc[01]))*', re.ASCII)  # as timm does


def _flag(default, text, needs='', **about):
    """Return a field that has a flag, see training.config.setting; all of them need --augment."""
    about = {'group': 'Augmentation', 'is_open': True, 'needs': f'augment, {needs}'.strip(', '), **about}
    return dataclasses.field(default=default, metadata={'text': text, **about})


_held = functools.partial(_flag, streams=False)  # of images in memory


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How --augment changes training images beside random crops and flips. By default it does no more than these."""

    pad: int = _held(4, 'Pixels around an image before it is cropped.', flag='crop_pad', least=0, most=64)
    pad_mode: str = _held('zeros', 'What these are: zeros or a mirror.', 'crop_pad', choices=('zeros', 'reflect'))
    alternating_flip: bool = _held(False, 'Mirror an image in every second epoch (2404.00498).', 'flip')
    cutout: int = _flag(
        0, 'Side in pixels of a square that is set to 0 in each normalized image (1708.04552).', least=0
    )
    mixup: float = _flag(0.0, 'Alpha of mixup (1710.09412), which blends images and their labels; 0: none.', least=0)
    cutmix: float = _flag(0.0, 'Alpha of CutMix (1905.04899), which swaps boxes of images; 0: none.', least=0)
    mix_probability: float = _flag(
        1.0, 'Fraction of the batches that --mixup or --cutmix mixes.', 'mixup or cutmix', least=0, most=1
    )
    mix_switch: float = _flag(
        0.5, 'Fraction of these that CutMix mixes, if both are on.', 'mixup, cutmix', least=0, most=1
    )
    policy: str = _flag('', 'trivial_wide (TrivialAugment), or RandAugment: rand-m7-mstd0.5-inc1.', flag='auto_augment')
    erasing: float = _flag(0.0, 'Fraction of images that get a rectangle of 0.', flag='random_erasing', least=0, most=1)
    repeats: int = _flag(1, 'How often an image comes in a row.', flag='repeated_augmentation', least=1, most=64)

    def __post_init__(self):
        if self.policy not in ('', 'trivial_wide') and not _RAND.fullmatch(self.policy):
            forms = 'trivial_wide or rand-mN (0..10), then -nN (1..9), -pP (0..1), -mstdS (below 100), -inc1'
            raise UserError(f'--auto_augment={self.policy} must be {forms}')
