"""Training input without and with policies, with one function for each, for benchmarks.speed.

Each function takes (dtype, resnet_size, batch_size, folder), ignores the first two, and returns {'augment': function of
a number of steps}. Without a folder the images are 32x32 and in memory; else they are the folder's JPEGs, cropped,
resized to 224x224 as in Pillow, and used in turn.
"""

from typing import Any

from benchmarks import jpeg_input


def ours(dtype: str, resnet_size: int, batch_size: int, folder: str | None, policy: str = '') -> dict:
    """Crops and flips, and a policy if one is given."""
    from official_resnet.inputs import datasets
    from official_resnet.inputs.augment_options import Augmentation

    options = Augmentation(policy=policy)

    def make(steps) -> Any:
        if folder:
            return jpeg_input.training_batches('antialias', batch_size, steps, folder, options)
        split = datasets.open_split('synthetic', 'train')
        return split.training_batches(batch_size, num_epochs=steps, options=options).take(steps)

    return {'augment': jpeg_input.iterating(make)}


def trivial_wide(dtype: str, resnet_size: int, batch_size: int, folder: str | None) -> dict:
    """TrivialAugment, as in the recipe torchvision_v2."""
    return ours(dtype, resnet_size, batch_size, folder, 'trivial_wide')


def randaugment(dtype: str, resnet_size: int, batch_size: int, folder: str | None) -> dict:
    """RandAugment, as in the recipes a1 and a2."""
    return ours(dtype, resnet_size, batch_size, folder, 'rand-m7-mstd0.5-inc1')
