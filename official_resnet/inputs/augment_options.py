"""Options of augmentation. The functions that use them are in augmentation and batch_augmentation."""

import dataclasses


def _flag(default, text, **about):
    """Return a field that has a flag, see training.config.setting."""
    about = {'group': 'Augmentation', 'is_open': True, 'needs': 'augment', **about}
    return dataclasses.field(default=default, metadata={'text': text, **about})


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How --augment changes training images beside random crops and flips. By default it does no more than these."""

    pad: int = _flag(
        4, 'Pixels around an image before it is cropped.', flag='crop_pad', least=0, most=64, streams=False
    )
    pad_mode: str = _flag(
        'zeros', 'What is around an image: zeros, or its mirror image.', choices=('zeros', 'reflect'), streams=False
    )
    alternating_flip: bool = _flag(
        False, 'Mirror an image in every second epoch, half of the images in the first (2404.00498).', streams=False
    )
    cutout: int = _flag(
        0, 'Side in pixels of a square that is set to 0 in each normalized image (1708.04552).', least=0
    )
    mixup: float = _flag(0.0, 'Alpha of mixup (1710.09412), which blends images and their labels; 0: none.', least=0)
    cutmix: float = _flag(0.0, 'Alpha of CutMix (1905.04899), which swaps boxes of images; 0: none.', least=0)
    mix_probability: float = _flag(1.0, 'Fraction of the batches that --mixup or --cutmix mixes.', least=0, most=1)
    mix_switch: float = _flag(0.5, 'Fraction of these that CutMix mixes, if both are on.', least=0, most=1)
