"""Make the data that tests/golden.py gives to both checkouts: data sets, images, ILSVRC2012's files, checkpoints.

    PYTHONPATH=. python tests/golden_inputs.py FOLDER ../shared/data

Everything is synthetic, small and the same in every run. The checkpoints are written by the helpers of the converters'
tests, which this program finds wherever they lie below its own folder.
"""

import gzip
import importlib
import os
import pathlib
import shutil
import struct
import sys

import numpy as np
from PIL import Image

KINDS = {
    'rgb.jpg': ('RGB', {'quality': 90}),
    'grey.jpg': ('L', {'quality': 90}),
    'cmyk.jpg': ('CMYK', {'quality': 90}),
    'rotated.jpg': ('RGB', {'quality': 90, 'exif': {0x0112: 6}}),  # EXIF: its top is on the right
    'alpha.png': ('RGBA', {}),
    'palette.png': ('P', {'transparency': 0}),
    'deep.png': ('I;16', {}),
    'frame.gif': ('P', {}),
    'plain.bmp': ('RGB', {}),
    'smooth.webp': ('RGB', {'quality': 90}),
}  # file -> mode, options of Pillow


def write_cifar(folder):
    """Write CIFAR-10 with 5 x 52 + 50 images and CIFAR-100 with 130 + 50, whose brightness tells the class."""
    random = np.random.default_rng(0)
    cifar10 = {f'cifar-10-batches-bin/data_batch_{i}.bin': (52, 1) for i in range(1, 6)}
    cifar100 = {'cifar-100-binary/train.bin': (130, 2), 'cifar-100-binary/test.bin': (50, 2)}
    for name, (count, label_bytes) in (cifar10 | {'cifar-10-batches-bin/test_batch.bin': (50, 1)} | cifar100).items():
        labels = random.integers(0, 10, (count, label_bytes))
        images = random.integers(0, 60, (count, 3072)) + 19 * labels[:, -1:]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(np.concatenate([labels, images], 1).astype(np.uint8).tobytes())


def write_mnist(folder):
    """Write MNIST with 160 training and 50 test images, packed."""
    random = np.random.default_rng(1)
    folder.mkdir()
    for prefix, count in (('train', 160), ('t10k', 50)):
        labels = random.integers(0, 10, count)
        images = random.integers(0, 60, (count, 28, 28)) + 19 * labels[:, None, None]
        for name, array in ((f'{prefix}-images-idx3-ubyte', images), (f'{prefix}-labels-idx1-ubyte', labels)):
            head = struct.pack(f'>HBB{array.ndim}I', 0, 8, array.ndim, *array.shape)
            (folder / f'{name}.gz').write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def write_images(folder, count=1, seed=2):
    """Write `count` images of each kind of file into a folder."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for k in range(count):
        for name, (mode, options) in KINDS.items():
            width, height = random.integers(30, 60, 2)
            coarse = Image.fromarray(random.integers(0, 256, (4, 5, 4), np.uint8), 'RGBA').resize((width, height))
            image = coarse if mode == 'RGBA' else coarse.convert('RGB')
            if mode == 'I;16':
                image = Image.fromarray(np.asarray(image.convert('L'), np.uint16) * 257)
            elif mode != 'RGBA':
                image = image.convert(mode)
            if 'exif' in options:
                exif = Image.Exif()
                exif.update(options['exif'])
                options = options | {'exif': exif}
            image.save(folder / f'{k}_{name}', **options)


def write_checkpoints(folder):
    """Write a checkpoint of each family; <family>.<suffix>, of TensorFlow's formats <family>/model.ckpt.*."""
    from fixtures import foreign_files, torch_files

    folder.mkdir()
    torch_files.write_zip(folder / 'torch.pth', torch_files.random_weights(torch_files.TINY['bottleneck']))
    torch_files.write_legacy(folder / 'torch_cifar.th', torch_files.random_weights(torch_files.TINY['cifar_a']))
    variables = foreign_files.caffe_variables((2, 1), 8, 7)
    (folder / 'caffe.caffemodel').write_bytes(foreign_files.caffe_file(variables))
    np.savez(folder / 'tensorpack.npz', **foreign_files.tensorpack_variables('se'))
    foreign_files.applications_net(is_v2=True).save(folder / 'keras_applications.keras')
    model = foreign_files.applications_net(is_v2=False)
    foreign_files.write_old_applications(folder / 'keras_applications_v1.h5', model)
    for family in ('slim', 'official_tf'):
        (folder / family).mkdir()
    foreign_files.write_tf(folder / 'slim/model.ckpt', foreign_files.slim_variables(2, (2, 1)))
    images = np.zeros((1, 32, 32, 3), np.float32)
    foreign_files.write_official(folder / 'official_tf/model.ckpt', 'cifar v1', images)


def main(folder, shared):
    """Write everything into a folder; `shared` is the one of the real data."""
    tests = pathlib.Path(__file__).parent
    sys.path += sorted({str(path.parent) for path in tests.rglob('*.py')})
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    write_cifar(folder)
    write_mnist(folder / 'mnist')
    write_images(folder / 'images')
    for number, (split, count) in enumerate((('train', 3), ('validation', 1))):
        for label, name in enumerate(('cat', 'dog', 'sea lion')):
            write_images(folder / 'folder' / split / name, count, 10 * number + label + 3)
    ilsvrc = importlib.import_module('fixtures.ilsvrc')
    ilsvrc.SAMPLE = shared / 'imagenet-sample.tar'
    ilsvrc.make(folder / 'ilsvrc', train_images=65, validation_images=3)
    write_checkpoints(folder / 'checkpoints')
    shutil.copy(shared / 'akamaster-resnet20.th', folder / 'checkpoints/akamaster.th')


if __name__ == '__main__':
    main(*map(pathlib.Path, sys.argv[1:]))
