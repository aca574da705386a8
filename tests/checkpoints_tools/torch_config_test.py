"""config.json and preprocessor_config.json beside PyTorch's weights: the input of the card, and what is refused."""

import json

import pytest
import safetensors.numpy
from fixtures import torch_files
from fixtures.conversion import refuse

from checkpoints_tools import convert, from_torch, from_transformers, torch_config
from checkpoints_tools.from_torch import IMAGENET_INPUT, MEAN, STD

HEAD = (1000, 2048)
A1 = {  # timm/resnet50.a1_in1k
    'architecture': 'resnet50',
    'num_classes': 1000,
    'num_features': 2048,
    'global_pool': 'avg',
    'pretrained_cfg': {
        'tag': 'a1_in1k',
        'input_size': [3, 224, 224],
        'test_input_size': [3, 288, 288],
        'interpolation': 'bicubic',
        'crop_pct': 0.95,
        'test_crop_pct': 1.0,
        'crop_mode': 'center',
        'mean': list(MEAN),
        'std': list(STD),
    },
}
CONVNEXT = {  # microsoft/resnet-50
    'crop_pct': 0.875,
    'do_normalize': True,
    'do_resize': True,
    'feature_extractor_type': 'ConvNextFeatureExtractor',
    'image_mean': list(MEAN),
    'image_std': list(STD),
    'resample': 3,
    'size': 224,
}


def timm(**values):
    """Return A1 with other values of its pretrained_cfg; None takes one away."""
    return A1 | {'pretrained_cfg': {n: v for n, v in (A1['pretrained_cfg'] | values).items() if v is not None}}


def fields(found):
    return found.size, found.resize, found.interpolation, found.scale, found.mean, found.std


HALF, SMALL = [0.5, 0.5, 0.5], {'test_input_size': None, 'test_crop_pct': None}
NO_TEST = timm(**SMALL)


@pytest.mark.parametrize(
    'config,expected',
    [
        ({}, (224, 256, 'bilinear', 1 / 255, MEAN, STD)),
        (A1, (288, 288, 'bicubic', 1 / 255, MEAN, STD)),
        (NO_TEST, (224, 235, 'bicubic', 1 / 255, MEAN, STD)),  # 224 / 0.95 = 235.8
        (timm(test_crop_pct=None), (288, 303, 'bicubic', 1 / 255, MEAN, STD)),
        (timm(**SMALL, mean=HALF, std=HALF), (224, 235, 'bicubic', 1 / 255, (0.5,) * 3, (0.5,) * 3)),
        (timm(**SMALL, interpolation='bilinear'), (224, 235, 'bilinear', 1 / 255, MEAN, STD)),
        (timm(crop_mode='squash'), (288, None, 'bicubic', 1 / 255, MEAN, STD)),
        ({'architecture': 'resnet50'} | NO_TEST['pretrained_cfg'], (224, 235, 'bicubic', 1 / 255, MEAN, STD)),
        ({'architecture': 'resnet50', 'pretrained_cfg': {}}, (224, 256, 'bicubic', 1 / 255, MEAN, STD)),
        (A1 | {'model_args': {'num_classes': 1000, 'global_pool': 'avg'}}, (288, 288, 'bicubic', 1 / 255, MEAN, STD)),
    ],
)
def test_what_timm_writes(config, expected):
    found = torch_config.timm_input(config, HEAD, IMAGENET_INPUT)
    assert fields(found) == expected and found.exif and found.channels == 'RGB'


@pytest.mark.parametrize(
    'config,message',
    [
        (timm(test_input_size=[3, 288, 320]), r'\[3, 288, 320\].*squares of 3 channels; move it away'),
        (timm(test_input_size=[1, 28, 28]), 'squares of 3 channels'),
        (timm(test_input_size=[3, 9000, 9000]), r'size 9000, not 1\.\.4096'),
        (timm(test_input_size=288), 'the input size 288'),
        (timm(crop_mode='border'), "crop_mode='border'"),
        (timm(crop_mode='squash', test_crop_pct=0.9), "crop_mode='squash' with crop_pct=0.9"),
        (timm(test_crop_pct=1.2), 'crop_pct=1.2'),
        (timm(test_crop_pct=1e-320), 'crop_pct=1e-320'),
        (timm(test_crop_pct=0.05), 'crop_pct=0.05'),  # 5,760 pixels
        (timm(test_crop_pct='x'), "crop_pct='x'"),
        (timm(interpolation='lanczos'), "interpolation 'lanczos', not 'bilinear' or 'bicubic'; move it away"),
        (timm(mean=[0.5]), r'mean \[0.5\], not three numbers'),
        (timm(std=[1, 0, 1]), 'std .*above 0'),
        (A1 | {'num_classes': 10}, 'num_classes=10, but the weights have 1000'),
        (A1 | {'global_pool': 'max'}, "global_pool='max', and only 'avg'"),
        (A1 | {'model_args': {'output_stride': 8}}, 'output_stride=8, and only 32'),
        (A1 | {'model_args': {'act_layer': 'silu'}}, 'model_args with act_layer.*convert another'),
        (A1 | {'model_args': 7}, 'no object'),
        (A1 | {'pretrained_cfg': [7]}, 'no object'),
    ],
)
def test_what_of_timm_no_card_can_say(config, message):
    refuse(rf'config\.json has .*{message}', torch_config.timm_input, config, HEAD, IMAGENET_INPUT)


def test_a_network_without_its_classifier_has_the_config_of_the_whole():
    assert torch_config.timm_input(A1, (2048, 2048), IMAGENET_INPUT).size == 288


@pytest.mark.parametrize(
    'change,expected',
    [
        ({}, (224, 256, 'bicubic', 1 / 255, MEAN, STD)),
        ({'size': {'shortest_edge': 256}, 'crop_pct': 0.9}, (256, 284, 'bicubic', 1 / 255, MEAN, STD)),
        ({'size': {'shortest_edge': 384}}, (384, None, 'bicubic', 1 / 255, MEAN, STD)),
        ({'crop_pct': None}, (224, 256, 'bicubic', 1 / 255, MEAN, STD)),
        ({'resample': 2}, (224, 256, 'bilinear', 1 / 255, MEAN, STD)),
        ({'do_rescale': True, 'rescale_factor': 0.5}, (224, 256, 'bicubic', 0.5, MEAN, STD)),
        ({'do_rescale': False}, (224, 256, 'bicubic', 1, MEAN, STD)),
        ({'do_normalize': False}, (224, 256, 'bicubic', 1 / 255, (0, 0, 0), (1, 1, 1))),
        ({'image_processor_type': 'ConvNextImageProcessorFast'}, (224, 256, 'bicubic', 1 / 255, MEAN, STD)),
    ],
)
def test_what_hugging_face_writes(change, expected):
    assert fields(torch_config.processor_input(CONVNEXT | change, IMAGENET_INPUT)) == expected


@pytest.mark.parametrize(
    'change,message',
    [
        ({'image_processor_type': 'ViTImageProcessor'}, "that of 'ViTImageProcessor'"),
        ({'do_resize': False}, 'do_resize=False.*move it away'),
        ({'do_center_crop': True}, 'do_center_crop=True'),
        ({'do_flip_channel_order': True}, 'do_flip_channel_order=True'),
        ({'size': {'height': 224, 'width': 224}}, r'size None, not 1\.\.4096'),
        ({'size': [224]}, r'size \[224\]'),
        ({'resample': 1}, 'interpolation 1, not'),
        ({'resample': [3]}, r'interpolation \[3\]'),
        ({'image_mean': None}, 'mean None, not three numbers'),
        ({'rescale_factor': -1}, 'scale -1, not a number above 0'),
        ({'crop_pct': 'x'}, "crop_pct='x'"),
    ],
)
def test_what_of_hugging_face_no_card_can_say(change, message):
    refuse(
        rf'preprocessor_config\.json (has|is) .*{message}',
        torch_config.processor_input,
        CONVNEXT | change,
        IMAGENET_INPUT,
    )


def write(folder, shapes, **files):
    """Write a folder as it is on the hub; `files` are JSON objects or text."""
    safetensors.numpy.save_file(torch_files.random_weights(shapes), folder / 'model.safetensors')
    for name, content in files.items():
        (folder / f'{name}.json').write_text(content if isinstance(content, str) else json.dumps(content))


TINY = torch_files.TINY['bottleneck']
OURS = {'config': {'dataset': 'cifar10'}}  # config.json of a run of this package


@pytest.mark.parametrize(
    'shapes,files,sizes',
    [
        (TINY, {'config': A1 | {'num_classes': 7}}, (288, 288)),
        (torch_files.V2['basic'], {'config': timm(test_crop_pct=0.9) | {'num_classes': 7}}, (288, 320)),
        (TINY, {'config': OURS, 'preprocessor_config': CONVNEXT}, (224, 256)),
        (
            torch_files.as_transformers(TINY),
            {'config': {'model_type': 'resnet'}, 'preprocessor_config': CONVNEXT | {'size': 240}},
            (240, 274),
        ),
        (torch_files.as_transformers(TINY), {'preprocessor_config': CONVNEXT | {'crop_pct': 1.0}}, (224, 224)),
        (torch_files.as_transformers(TINY), {'config': {'model_type': 'vit'}, 'preprocessor_config': {}}, (224, 256)),
    ],
)
def test_the_card_has_the_input_of_the_files(shapes, files, sizes, tmp_path):
    write(tmp_path, shapes, **files)
    card = convert.convert(tmp_path, tmp_path / 'net.keras')
    assert (card['input']['size'], card['input']['resize']) == sizes
    used = {'model.safetensors'} | {f'{name}.json' for name in files if sizes not in ((224, 256),)}
    assert card['source_sha256'].keys() == used


@pytest.mark.parametrize('name', ['config', 'preprocessor_config'])
def test_a_damaged_file_is_refused(name, tmp_path):
    shapes = torch_files.as_transformers(TINY)
    write(tmp_path, shapes, **{name: json.dumps(CONVNEXT)[:-9]})
    refuse(rf"{name}\.json'? is damaged .*get it again", from_transformers.shapes, tmp_path)
    refuse(rf'{name}\.json', convert.identify, tmp_path)


@pytest.mark.parametrize('name', ['resnetblur50', 'resnetaa50d.sw_in12k', 'resnet50_gn.a1h_in1k'])
def test_a_config_that_names_another_network_is_refused(name, tmp_path):
    write(tmp_path, TINY, config=A1 | {'architecture': name, 'num_classes': 7})
    refuse('which none here has', from_torch.describe, from_torch.shapes(tmp_path))


@pytest.mark.parametrize('name', ['resnetblur50-84f4748f.pth', 'resnetaa50d_sw.safetensors', 'my_seresnextaa101d.pt'])
def test_the_name_of_a_file_tells_of_anti_aliasing(name, tmp_path):
    """Unless the user says that it does not; what config.json says cannot be overruled."""
    weights = torch_files.random_weights(TINY)
    if name.endswith('.safetensors'):
        safetensors.numpy.save_file(weights, tmp_path / name)
    else:
        torch_files.write_zip(tmp_path / name, weights)
    refuse('anti-aliasing layers', convert.convert, tmp_path / name, tmp_path / 'net.keras')
    found = convert.identify(tmp_path / name)[1]
    variant = from_torch.describe(dict(found)).variant
    assert from_torch.describe(found, variant).variant == variant
    (tmp_path / 'config.json').write_text(json.dumps(A1 | {'architecture': 'resnetaa50', 'num_classes': 7}))
    refuse('anti-aliasing', from_torch.describe, convert.identify(tmp_path / name)[1], variant)
    (tmp_path / 'config.json').unlink()
    (tmp_path / name).rename(tmp_path / name.replace('aa', 'a').replace('blur', ''))
    convert.convert(tmp_path / name.replace('aa', 'a').replace('blur', ''), tmp_path / 'net.keras')
