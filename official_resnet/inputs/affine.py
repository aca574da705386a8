"""Normalizations (image * scale - mean) / std, whose names contain their numbers. TensorFlow is imported late."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from official_resnet import errors

if TYPE_CHECKING:
    import tensorflow as tf


def affine_name(
    order: str = 'RGB', scale: float = 1.0, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)
) -> str:
    """Return the name of (image * scale - mean) / std in NORMALIZATIONS.

    Args:
        order: Order of the network's input channels, 'RGB' or 'BGR'. `mean` and `std` have the same order.
        scale: Factor that multiplies the pixel values, 0..255.
        mean, std: One number for each channel, or one for all.
    """
    return ':'.join(['affine', order, repr(float(scale)), *(','.join(map(repr, map(float, v))) for v in (mean, std))])


def function_of(name: str) -> Callable:
    """Return the function images [..., h, w, c] -> float32 of a name from `affine_name`. Other names raise KeyError."""
    try:
        kind, order, factor, *offsets = name.split(':')
        scale = float(factor)
        mean, std = ([float(number) for number in numbers.split(',')] for numbers in offsets)  # lists, repeated below
    except ValueError:
        raise KeyError(name) from None
    if kind != 'affine' or order not in ('RGB', 'BGR'):
        raise KeyError(name)

    def normalize(images) -> 'tf.Tensor':
        import tensorflow as tf

        images = tf.cast(images, tf.float32)
        images = images[..., ::-1] if order == 'BGR' else images
        width, channels = images.shape[-2:]
        if channels and len(mean) not in (1, channels):
            fault = f'the images have {channels} colour channels, and this normalization {len(mean)}'
            raise errors.UserError(f'{fault}; leave out --input_normalization')
        if None in (width, channels):
            return (images * scale - tf.constant(mean)) / tf.constant(std)
        # Repeating the numbers along a whole row of pixels is several times as fast as broadcasting three channels.
        means, stds = (tf.constant(values * (width * channels // len(values))) for values in (mean, std))
        rows = tf.reshape(images, [-1, width * channels])
        return tf.reshape((rows * scale - means) / stds, tf.shape(images))

    return normalize


def in_words(name: str) -> str:
    """Say what a name in NORMALIZATIONS means for the values 0..255 of an image.

    >>> in_words(PUBLISHED['torch'])
    'divided by 255, minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225)'
    """
    if not name.startswith('affine:'):
        by_image = 'minus the mean of the image, divided by its standard deviation'
        known = {'unit_range': 'divided by 255', 'none': 'unchanged'}
        return known.get(name) or f'{by_image} (`{name}` of TensorFlow)'
    _, order, scale, mean, std = name.split(':')
    factor, words = float(scale), ['in the order BGR'] * (order == 'BGR')
    if factor != 1:
        words.append(f'divided by {1 / factor:.7g}' if factor < 1 else f'multiplied by {factor:.7g}')
    for verb, text, neutral in (('minus', mean, 0), ('divided by', std, 1)):
        numbers = [float(number) for number in text.split(',')]
        if set(numbers) != {neutral}:
            listed = ', '.join(f'{number:.7g}' for number in numbers[: len(numbers) if len(set(numbers)) > 1 else 1])
            words.append(f'{verb} ({listed})' if ', ' in listed else f'{verb} {listed}')
    return ', '.join(words) or 'unchanged'


OFFICIAL = affine_name(mean=(123.68, 116.78, 103.94))  # as in official/resnet: RGB, 0..255, minus the mean
PUBLISHED = {
    'official': OFFICIAL,
    'torch': affine_name(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    # CIFAR-10's training images, as airbench94 rounds their means and deviations
    'cifar10': affine_name(scale=1 / 255, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616)),
    'inception': affine_name(scale=1 / 127.5, mean=(1.0,)),  # -1..1
}
