"""What the readers of foreign checkpoints have in common.

Each module from_FAMILY has

    recognises(shapes)                  whether these variables are of the family
    shapes(path)                        {name: (shape, dtype)}, without reading values where the format allows
    read(path)                          {name: ndarray}, nothing executed, bounded by the file's size; or Lazy
    describe(shapes, variant=None)      Source: what network the variables are of, and what it is fed
    name_map(source, shapes)            [Entry]: where each variable goes; every variable in one entry or in `ignored`
    ignored(shapes)                     names that carry no weight of the network, {name: why}
    run(variables, images, source)      logits by the source's own definition, not by our model

and may have

    files(path)                         the files that a path stands for, where it is no file itself
    find_mean(path), read_mean(file), with_mean(source, mean)
                                        the mean image beside a checkpoint or None, its values, the Source with them

Whatever is wrong with a file is a UserError.
"""

import collections
import collections.abc
import dataclasses

import numpy as np

from official_resnet import resnet_spec
from official_resnet.inputs.normalization import NORMALIZATIONS

# Names of one or more source variables, in the order `convert` takes them; a variable of ours as
# 'LAYER/VARIABLE', 'group1_block1_conv1/kernel'. Each source is used once; only a vector that is folded
# into several targets, as a bias into the means of BNs, may be in several, one of them at most on its own.
Entry = collections.namedtuple('Entry', 'target sources convert')


@dataclasses.dataclass(frozen=True)
class Input:
    """What the source's network is fed; a picture is multiplied by `scale`, less `mean`, divided by `std`.

    Attributes:
        channels: 'RGB' or 'BGR', order of `mean`, `std` and the network's input.
        scale: of pixel values 0..255, as 1 or 1/255.
        mean, std: a number a channel, after `scale`.
        size: height and width, pixels, of the published evaluation.
        resize: shorter side before the central crop of `size`; None without resizing.
        interpolation: 'bilinear' or 'bicubic'.
        normalization: a name in NORMALIZATIONS, in place of scale, mean and std.
    """

    channels: str = 'RGB'
    scale: float = 1.0
    mean: tuple = (0.0, 0.0, 0.0)
    std: tuple = (1.0, 1.0, 1.0)
    size: int = 224
    resize: int | None = 256
    interpolation: str = 'bilinear'
    normalization: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """What a checkpoint is.

    Attributes:
        family: 'slim', 'official_tf', 'caffe', 'torch', 'keras_applications' or 'tensorpack'.
        variant: a name a person knows it by, as 'resnet_v1_50'.
        spec: the ResNetSpec that computes the same function.
        num_classes: outputs.
        input: Input.
        labels: 'imagenet1000', 'imagenet1001' (0 is background), 'cifar10', or 'unknown'.
        note: license and citation, as far as known.
    """

    family: str
    variant: str
    spec: resnet_spec.ResNetSpec
    num_classes: int
    input: Input
    labels: str
    note: str = ''


class Lazy(collections.abc.Mapping):
    """{name: ndarray} that reads a value each time it is asked for: a checkpoint is never in memory as a whole.

    Args:
        names: in order.
        read: name -> ndarray.
    """

    def __init__(self, names, read):
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name):
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name):
        return name in self._names

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)


def identity(array):
    """Return the array as it is: the convert of an Entry whose layouts agree."""
    return array


def from_oihw(kernel):
    """Return [out, in, h, w] as [h, w, in, out]."""
    return np.transpose(kernel, (2, 3, 1, 0))


def transposed(kernel):
    """Return [out, in] as [in, out]."""
    return np.transpose(kernel)


def normalized(images, convention):
    """Return pictures as the source's network is fed them.

    Args:
        images: [n, h, w, 3], RGB, 0..255.
        convention: Input.

    Returns:
        float32 [n, h, w, 3], channels in the convention's order.
    """
    images = np.asarray(images, np.float32)
    if convention.channels == 'BGR':
        images = images[..., ::-1]
    if convention.normalization:
        return np.asarray(NORMALIZATIONS[convention.normalization](images))
    return (images * np.float32(convention.scale) - np.float32(convention.mean)) / np.float32(convention.std)
