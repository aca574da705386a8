"""Choose the recipe, the batch size and the epochs of a training on a folder by the number of its images.

The recipes are made for 50,000 images and more. With a hundred, official/resnet's 182 epochs would have one step each.
image_folder_main also chooses the network and the size of its input, by the size of the images.
"""

import contextlib
import itertools
import logging
import math
import os
import pathlib
import statistics
import textwrap
from collections.abc import Iterator
from typing import Any

from absl import flags

from official_resnet import checkpoints, damage, files
from official_resnet.command_line.flags import Program, recipe_of
from official_resnet.errors import UserError
from official_resnet.inputs import image_folder, images
from official_resnet.inputs.listing import lists
from official_resnet.resnet_spec import POOLED_STEMS
from official_resnet.training.config import PRETRAINED, TrainConfig, flags_of

LARGE = 50_000  # training images of CIFAR-10; with as many, the recipes stay as they are
BATCHES, LEAST_BATCH = 8, 8  # least number of batches in an epoch, unless they would then have fewer than 8 images
STEPS, MAX_EPOCHS = 1000, 100  # this project's: about 1,000 steps or more, unless that takes more than 100 epochs
EVALUATIONS = 10  # this project's: least number in a training, however many test images there are
SMALL = 48  # pixels; an ImageNet network divides the height and width of its input by 32
SIZES = {160: 224, 128: 160, 96: 128, 64: 96}  # height and width of the input in training: in evaluation


def choose(values: flags.FlagValues, program: Program, asked: TrainConfig) -> dict[str, Any]:
    """Return {flag: value} for what the training images decide, and log it; {} for a data set without a folder.

    That is --recipe=fast (classic_fast for CIFAR, small for small images in image_folder_main), --batch_size,
    --train_epochs and, with at least twice as many test images as training images, --epochs_between_evals. A flag that
    the user passed is kept; if --recipe was passed, nothing is chosen. With --fine_tune, which stands for
    official/resnet's rate, the recipe stays. `asked` is the training that the flags describe.

    Raises:
        UserError: There is neither --image_folder nor --image_list, or it does not have the images of two classes.
    """
    if program.chooses_network:
        require_folder(values)
    require_other_files(asked.dataset, asked.machine.model_dir, '--model_dir')
    if values['recipe'].present or not asked.dataset.startswith('folder:'):
        return {}
    folder = asked.dataset.removeprefix('folder:')
    listing = image_folder.list_files(folder, asked.validation_fraction, asked.seed)
    paths, num_tests = [path for path, _ in listing.files('train')], len(listing.splits['test'])
    num_images = min(len(paths), asked.num_train_images or len(paths))
    if program.chooses_network:
        side = median_side(paths)
        rules = [*_network_rules(num_images, side, asked, values)]
    elif num_images >= LARGE:
        return {}
    else:
        quick = 'classic_fast' if 'classic_fast' in next(iter(program.recipes.values())) else 'fast'
        rules = [('recipe', values.recipe if values.fine_tune else quick, f'fewer than {LARGE:,} images')]
    defaults: dict[str, Any] = {flag: field.default for flag, field in flags_of(TrainConfig).items()}
    recipe = defaults | recipe_of(values, program, rules[0][1])
    batch_size = values.batch_size or fitting_batch(num_images, recipe['batch_size'])
    epochs = fitting_epochs(num_images, batch_size, recipe['train_epochs'])
    reason = f'a batch has at least {LEAST_BATCH} images' if num_images > batch_size else 'all images'
    if num_images >= BATCHES * batch_size:
        reason = f'an epoch has at least {BATCHES} batches'
    rules += [
        ('batch_size', batch_size, reason),
        ('train_epochs', epochs, f'about {STEPS:,} steps, or {MAX_EPOCHS} epochs'),
    ]
    if (every := min(num_tests // num_images, (values.train_epochs or epochs) // EVALUATIONS)) > 1:
        rules.append(('epochs_between_evals', every, f'{num_tests:,} test images take longer than an epoch'))
    rules = [row for row in rules if not values[row[0]].present and not (row[0] == 'resnet_size' and values.variant)]
    log = logging.getLogger(__name__).info
    log(f'{num_images:,} training images{f", the shorter side {side} pixels" if program.chooses_network else ""}:')
    width = max(len(f'{flag}={value}') for flag, value, _ in rules)
    for flag, value, reason in rules:
        log(f'  --{f"{flag}={value}":{width}}  {reason}')
    log('pass a flag to change it')
    found = {flag: value for flag, value, _ in rules}
    if program.chooses_network and asked.pretrained:
        found['variant'] = ''  # that of the recipe is not built
    elif program.chooses_network and (values.clean or not checkpoints.paths(f'{asked.machine.model_dir}/checkpoints')):
        for line in textwrap.wrap(_offer(values.cache_dir, side), 80):
            log(line)
    return found


def require_folder(values: flags.FlagValues) -> None:
    """Raise UserError if there is neither --image_folder nor --image_list."""
    if not (values.image_folder or values.image_list):
        raise UserError('--image_folder is missing; pass a folder that has a subfolder for each class, or --image_list')


def require_other_files(dataset: str, folder: str | os.PathLike | None, flag: str) -> None:
    """Raise UserError if files written into a folder would replace the list of a data set; `flag` names the folder."""
    from official_resnet.training import same_run

    if not folder or not dataset.startswith('folder:'):
        return
    for path in filter(os.path.isfile, lists(dataset.removeprefix('folder:'))):
        for written in itertools.chain(*map(pathlib.Path(folder).glob, same_run.WRITTEN + same_run.OF_REPORT)):
            if written.samefile(path):
                fault = f"image_list '{path}' would be overwritten by what is written into {flag}={folder}"
                raise UserError(f'{fault}; rename the list, or pass another {flag}')


def _offer(cache_dir, side):
    """Return a line on starting from published weights, which are not downloaded unless the user names them."""
    from official_resnet.weights import pretrained as weights

    text = 'starting from random weights; if a training starts from a trained network, far fewer images are enough: '
    text += f'--{PRETRAINED}='
    if side < SMALL:
        return f'{text}NET, which is the model_dir or the .keras file of a network for 32 pixels'
    if names := [name for name in weights.cached(cache_dir) if input_side(name) >= SMALL]:
        return f'{text}{names[0]} starts from one in the cache'
    return f'{text}resnet18 downloads one (47 MB)'


def _network_rules(num_images, side, asked, values) -> Iterator[tuple[str, Any, str]]:
    """Yield (flag, value, reason) for the network and its input. `side` is the shorter side of the images."""
    input_size = input_side(asked.pretrained)
    theirs = f'the pretrained network takes {input_size} pixels'
    if (input_size or side) < SMALL:
        yield 'recipe', 'small', f'{theirs if input_size else f"below {SMALL} pixels: a CIFAR network"}, shifted crops'
        if size := values.eval_image_size or values.image_size:
            for flag in ('image_size', 'eval_image_size', 'eval_resize'):
                yield flag, size, 'the same in training and evaluation, as these crops are not scaled'
        return
    yield 'recipe', 'fast', f'{theirs if input_size else f"from {SMALL} pixels on: an ImageNet network"}, scaled crops'
    if not input_size:
        yield 'resnet_size', 50 if num_images >= LARGE else 18, f'50 layers from {LARGE:,} images on, else 18'
    test = values.eval_image_size or (None if values.image_size else input_size)
    fitting = (size for size, larger in SIZES.items() if (input_size or size <= side) and larger <= (test or larger))
    size = values.image_size or next(fitting, test if input_size else min(SIZES))
    reason = 'smaller, as crops enlarge objects (1906.06423)' if input_size else 'no larger than the images'
    if test and not (asked.augment or values.image_size):
        size, reason = test, 'as in evaluation, because there are no crops'
    yield 'image_size', size, reason
    test = test or (test_side(size) if asked.augment else size)
    reason = 'larger, as crops enlarge objects (1906.06423)' if test > size else 'as in training'
    yield 'eval_image_size', test, 'the input of the pretrained network' if test == input_size else reason


def test_side(size: int) -> int:
    """Return the input in evaluation for one in training: that of the nearest in SIZES, or the same.

    >>> test_side(96), test_side(192), test_side(256), test_side(32)
    (128, 224, 256, 32)
    """
    nearest = min(SIZES, key=lambda row: abs(row - size))
    return max(SIZES[nearest], size) if size >= min(SIZES) else size


def median_side(paths: list) -> int:
    """Return the shorter side in pixels of images, the median of up to 400 of them; 0 if none can be read."""
    from PIL import Image

    sides = []
    for i in images.samples(len(paths)):
        try:
            with open(paths[i], 'rb', opener=files.plain) as file, Image.open(file, formats=images.FORMATS) as image:
                sides.append(min(image.size))  # only the header is read
        except Exception as error:  # noqa: BLE001  a broken file makes Pillow raise anything; it is left out later
            if isinstance(error, OSError) and damage.is_of_machine(error):
                raise
    return round(statistics.median(sides)) if sides else 0


def input_side(pretrained: str | None) -> int | None:
    """Return the height in pixels of a pretrained network's input, None without one."""
    if not pretrained:
        return None
    from official_resnet import resnet_variants
    from official_resnet.inference import network_files
    from official_resnet.weights import pretrained as weights

    if row := weights.find(pretrained):
        return 224 if resnet_variants.find_spec(row.network).stem in POOLED_STEMS else 32
    with contextlib.suppress(UserError):  # reported when it is loaded
        return network_files.find(pretrained, needs_head=False).card.net_size[0]
    return None


def fitting_batch(num_images: int, most: int) -> int:
    """Return the largest power of two of which an epoch has 8 batches: 8 to `most`, and no more than all images."""
    return min(num_images, most, max(LEAST_BATCH, 2 ** int(math.log2(max(num_images // BATCHES, 1)))))


def fitting_epochs(num_images: int, batch_size: int, least: int) -> int:
    """Return the number of epochs that have 1,000 steps together: at most 100, but at least `least`, the recipe's.

    If some images turn out to be unreadable, an epoch may lack a step.
    """
    steps = max(num_images // batch_size, 1)
    return max(least, min(math.ceil(STEPS / steps), MAX_EPOCHS))
