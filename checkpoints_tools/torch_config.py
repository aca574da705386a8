"""What JSON files beside PyTorch's weights say: config.json (Hugging Face's or timm's) and preprocessor_config.json.

They tell how images become the network's input. What a card cannot express, and what no network here computes, is
refused: the card or the network would be wrong, and nothing would show it.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from checkpoints_tools import torch_file
from checkpoints_tools.source import Input, check_input, reading
from official_resnet import files
from official_resnet.errors import UserError
from official_resnet.inference import card_reader

CONFIG, PROCESSOR = 'config.json', 'preprocessor_config.json'
_REMEDY = "move it away, and edit the card's `input`"
_RESAMPLINGS = {'2': 'bilinear', '3': 'bicubic'}  # PIL.Image.Resampling
_SQUASHED = 384  # from this size on, ConvNextImageProcessor resizes the whole image and crops nothing
# Steps of an image processor, with the only value that a card can express.
_STEPS = {'do_resize': True, 'do_center_crop': False, 'do_pad': False, 'do_flip_channel_order': False}
# Arguments of timm's networks with the only value that ours have, and those that change nothing in inference.
_COMPUTED = {'global_pool': 'avg', 'output_stride': 32}
_HARMLESS = 'num_classes in_chans img_size drop_rate drop_path_rate drop_block_rate zero_init_last'.split()


def read(path: str | os.PathLike, name: str) -> dict[str, Any]:
    """Return the JSON object of the file `name` beside the weights, {} if there is none.

    Raises:
        UserError: The file is damaged or cannot be read.
    """
    path = torch_file.locate(path).with_name(name)
    if not path.is_file():
        return {}
    with reading(path, f'a {name}'):
        found = json.loads(files.read_bytes(path, 'json_bytes'))
        if not isinstance(found, dict):
            raise ValueError('it is no JSON object')
    return found


def of_timm(path: str | os.PathLike) -> dict[str, Any]:
    """Return timm's config.json beside the weights, {} if there is none of timm."""
    config = read(path, CONFIG)
    return config if isinstance(config.get('architecture'), str) else {}


def list_files(path: str | os.PathLike) -> list:
    """Return the files that are read of weights in timm's names: theirs, and timm's config.json, if there is one."""
    return torch_file.list_files(path) + [torch_file.locate(path).with_name(CONFIG)] * bool(of_timm(path))


def require(config: Mapping[str, Any], only: Mapping[str, Any], name: str = CONFIG, remedy: str = '') -> None:
    """Raise UserError unless fields of a file have the only values that can be converted, or are missing."""
    for field, value in only.items():
        if config.get(field, value) != value:
            found = f'{name} has {field}={config[field]!r:.99}, and only {value!r} can be converted'
            raise UserError(f'{found}; {remedy}' if remedy else found)


def timm_input(config: Mapping[str, Any], head: tuple[int, ...], default: Input) -> Input:
    """Return the input that timm's config.json describes, at the size of its evaluation; `default` if it is {}.

    Args:
        config: What `of_timm` returns.
        head: The shape of the classifier's kernel. That of a network without one is square.
        default: The input of a network without config.json.

    Raises:
        UserError: The config is that of another network, or no card can express the input.
    """
    if not config:
        return default
    values = config.get('pretrained_cfg', config)  # of before timm 0.8, all in one
    arguments = config.get('model_args') or {}
    if not isinstance(values, dict) or not isinstance(arguments, dict):
        raise UserError(f'{CONFIG} has a pretrained_cfg or model_args that is no object; {_REMEDY}')
    if changed := [name for name in arguments if name not in (*_HARMLESS, *_COMPUTED)]:
        raise UserError(f'{CONFIG} has model_args with {changed[0]:.60}, which may change the network; convert another')
    for given in (config, arguments):
        require(given, _COMPUTED)
    classes = config.get('num_classes', values.get('num_classes', head[0]))
    if head[0] != head[1] and classes != head[0]:
        raise UserError(f'{CONFIG} has num_classes={classes!r:.60}, but the weights have {head[0]} classes; {_REMEDY}')
    defaults = {'input_size': [3, default.size, default.size], 'crop_pct': 0.875, 'interpolation': 'bicubic'}
    values = defaults | {name: value for name, value in values.items() if value is not None}
    size = values.get('test_input_size', values['input_size'])
    if not isinstance(size, list) or len(size) != 3 or size[0] != 3 or size[1] != size[2]:
        raise UserError(f'{CONFIG} has the input size {size!r:.60}, and a card has squares of 3 channels; {_REMEDY}')
    crop, mode = values.get('test_crop_pct', values['crop_pct']), values.get('crop_mode', 'center')
    if mode not in ('center', 'squash') or (mode == 'squash' and crop != 1):
        raise UserError(f'{CONFIG} has crop_mode={mode!r:.60} with crop_pct={crop!r:.60}; {_REMEDY}')
    found = {'size': size[1], 'mean': values.get('mean', [*default.mean]), 'std': values.get('std', [*default.std])}
    found |= {'interpolation': values['interpolation']}
    return _input(CONFIG, found, None if mode == 'squash' else crop, default)


def processor_input(processor: Mapping[str, Any], default: Input) -> Input:
    """Return the input that Hugging Face's preprocessor_config.json describes; `default` if it is {}.

    Raises:
        UserError: No card can express it.
    """
    if not processor:
        return default
    kind = processor.get('image_processor_type', processor.get('feature_extractor_type', 'ConvNext'))
    if not str(kind).startswith('ConvNext'):
        raise UserError(f'{PROCESSOR} is that of {kind!r:.60}, and only ConvNextImageProcessor can be read; {_REMEDY}')
    require(processor, _STEPS, PROCESSOR, _REMEDY)
    size, resample = processor.get('size'), processor.get('resample', 3)
    size = size.get('shortest_edge') if isinstance(size, dict) else size
    found = {'size': size, 'interpolation': _RESAMPLINGS.get(str(resample), resample)}
    found['scale'] = processor.get('rescale_factor', 1 / 255) if processor.get('do_rescale', True) else 1
    if processor.get('do_normalize', True):
        found |= {'mean': processor.get('image_mean'), 'std': processor.get('image_std')}
    else:
        found |= {'mean': [0, 0, 0], 'std': [1, 1, 1]}
    is_small = type(size) is int and size < _SQUASHED
    return _input(PROCESSOR, found, (processor.get('crop_pct') or 0.875) if is_small else None, default)


def _input(name, found, crop, default):
    """Return the default with the values that a file has. Without a crop, whole images are resized."""
    check_input(name, found, _REMEDY)
    resize = None
    if crop is not None:
        resize = math.floor(found['size'] / crop) if type(crop) in (int, float) and 0.01 <= crop <= 1 else 0
        if not card_reader.is_side(resize):
            raise UserError(f'{name} has crop_pct={crop!r:.60}, and a crop has 0.01 to 1 of the image; {_REMEDY}')
    found |= {name: tuple(map(float, found[name])) for name in ('mean', 'std')}
    return dataclasses.replace(default, resize=resize, **found)
