"""Choose the recipe, the batch size and the epochs of a training on a folder of images by their number.

The recipes are made for 50,000 images and more. On a hundred, official/resnet's 182 epochs would have one step each.
"""

import logging
import math
from typing import Any

from absl import flags

from official_resnet.command_line.flags import Program, recipe_of
from official_resnet.inputs import image_folder
from official_resnet.training.config import TrainConfig, flags_of

LARGE = 50_000  # training images of CIFAR-10; with as many, the recipes stay as they are
BATCHES, LEAST_BATCH = 8, 8  # least number of batches in an epoch, unless they had fewer images than 8
STEPS, MAX_EPOCHS = 1000, 100  # this project's: at least 1,000 steps, unless that takes more than 100 epochs


def choose(values: flags.FlagValues, program: Program, asked: TrainConfig) -> dict[str, Any]:
    """Return {flag: value} for what the number of training images decides, and log it.

    That is --recipe=fast (classic_fast for CIFAR), --batch_size and --train_epochs, but no flag that the user passed,
    and nothing if he passed --recipe. With --fine_tune, which stands for official/resnet's rate, the recipe stays.
    `asked` is the training that the flags describe.

    Raises:
        UserError: The folder does not have the images of two classes.
    """
    if values['recipe'].present:
        return {}
    folder = asked.dataset.removeprefix('folder:')
    num_images = len(image_folder.list_files(folder, asked.validation_fraction, asked.seed).files('train'))
    num_images = min(num_images, asked.num_train_images or num_images)
    if num_images >= LARGE:
        return {}
    quick = 'classic_fast' if 'classic_fast' in next(iter(program.recipes.values())) else 'fast'
    name = values.recipe if values.fine_tune else quick
    defaults: dict[str, Any] = {flag: field.default for flag, field in flags_of(TrainConfig).items()}
    recipe = defaults | recipe_of(values, program, name)
    batch_size = values.batch_size or fitting_batch(num_images, recipe['batch_size'])
    epochs = fitting_epochs(num_images, batch_size, recipe['train_epochs'])
    found = {'recipe': name, 'batch_size': batch_size, 'train_epochs': epochs}
    found = {flag: value for flag, value in found.items() if not values[flag].present}
    text = ' '.join(f'--{flag}={value}' for flag, value in found.items())
    logging.getLogger(__name__).info(f'{num_images:,} training images: {text}; pass a flag to change it')
    return found


def fitting_batch(num_images: int, most: int) -> int:
    """Return the largest power of two of which an epoch has 8, but 8 to `most`; all images if they are fewer than 8."""
    return min(num_images, most, max(LEAST_BATCH, 2 ** int(math.log2(max(num_images // BATCHES, 1)))))


def fitting_epochs(num_images: int, batch_size: int, least: int) -> int:
    """Return the epochs that have 1,000 steps, at most 100, but at least those of the recipe."""
    steps = max(num_images // batch_size, 1)
    return max(least, min(math.ceil(STEPS / steps), MAX_EPOCHS))
