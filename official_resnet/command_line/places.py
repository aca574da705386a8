"""Where --model_dir and the folder of the first of two stages may be: apart from what the training reads."""

import contextlib
import os
import pathlib

from absl import flags

from official_resnet.errors import UserError
from official_resnet.inputs.listing import TEST_NAMES, TRAIN_NAMES, split_name
from official_resnet.training.config import PRETRAINED
from official_resnet.weights import pretrained as weights

HEAD_THEN_ALL = 'head,all'  # a value of --transfer, see stages
_READ = ('image_folder', 'image_list', 'data_dir', 'cache_dir')  # flags
_ANOTHER = 'pass another --model_dir'


def model_dirs(values: flags.FlagValues) -> dict[str, pathlib.Path]:
    """Return {what a message calls it: absolute path} of --model_dir and, if there is one, of the first stage's folder.

    Raises:
        UserError: --model_dir= is empty, or is the root of the file system, beside which there is no folder.
    """
    if not values.model_dir:
        raise UserError('--model_dir= is empty; pass a path')
    folder = pathlib.Path(os.path.abspath(os.path.expanduser(values.model_dir)))
    found = {f'--model_dir={values.model_dir}': folder}
    if values.transfer == HEAD_THEN_ALL:
        if not folder.name:
            raise UserError(f'--model_dir={values.model_dir} leaves no place for a folder beside it; {_ANOTHER}')
        head_dir = folder.with_name(f'{folder.name}_head')
        found[f'{head_dir}, the folder of the first stage,'] = head_dir
    return found


def require_apart(values: flags.FlagValues) -> None:
    """Raise UserError if a run would take its own files for images, or would write or delete where it reads."""
    network, images = values[PRETRAINED].value, values.image_folder
    typed = [flag for flag in _READ if flag in values and values[flag].present and values[flag].value]
    for name, path in model_dirs(values).items():
        folder = path.resolve()
        if images and _is_read(folder, _resolved(images)):
            raise UserError(f'{name} is in --image_folder={images}, whose folders are read as classes; {_ANOTHER}')
        if network and weights.find(network) is None and _resolved(network).is_relative_to(folder):
            raise UserError(f'the pretrained network {network} is in {name}; {_ANOTHER}')
        for flag in typed if values.clean else ():
            if _resolved(values[flag].value).is_relative_to(folder):
                fault = f'--clean deletes files in {name}, where --{flag}={values[flag].value} is'
                raise UserError(f'{fault}; {_ANOTHER}, or leave --clean out')


def _resolved(path):
    return pathlib.Path(path).expanduser().resolve()


def _is_read(folder, images):
    """Return whether a folder is in a folder of images, but not beside its folders train and test."""
    if not folder.is_relative_to(images):
        return False
    splits = set()
    with contextlib.suppress(OSError):  # reported when it is read
        splits = {split_name(name) for name in os.listdir(images)}
    is_split = splits & {*TRAIN_NAMES} and splits & {*TEST_NAMES}
    return not is_split or folder == images or bool(split_name(folder.relative_to(images).parts[0]))
