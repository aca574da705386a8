"""The table of published weights, published.tsv: where they are, what they are, and what they were published with.

A row has only what was seen in the publisher's own code, page or release. A hash or a size that is not published is
left out; the SHA-256 of the file that was fetched is then in the card of the converted network.
"""

import csv
import dataclasses
import pathlib
from typing import Any

from official_resnet.inference.card_reader import Input

_IMAGENET: dict[str, Any] = {'scale': 1 / 255, 'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}
_HALF: dict[str, Any] = {'scale': 1 / 255, 'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}


@dataclasses.dataclass(frozen=True)
class Weights:
    """A row of the table. What is not known is ''.

    Attributes:
        name: 'torchvision/resnet50_v2'.
        family: A key of checkpoints_tools.FAMILIES.
        network: The name in VARIANTS of the network that the file must hold.
        url: Where the file is. A tar.gz holds one checkpoint of TensorFlow.
        checksum: 'sha256:' and the first digits of the published SHA-256, or an MD5.
        bytes: The size of the file.
        licence, citation: Those of the publisher.
        input: '224/232 bilinear' resizes the shorter side to 232 pixels and crops 224, RGB in 0..1 normalised as
            torchvision does, or with ' half' to -1..1. '' is the family's own convention.
        top1: Published top-1 accuracy on ILSVRC2012's validation images, or CIFAR-10's test images, in %.
        top1_source: Where that number stands.
        page: Where a person gets the file, if no program can fetch it. `url` is then only its place in a mirror.
    """

    name: str
    family: str
    network: str
    url: str
    checksum: str = ''
    bytes: str = ''
    licence: str = ''
    citation: str = ''
    input: str = ''
    top1: str = ''
    top1_source: str = ''
    page: str = ''

    def facts(self) -> dict[str, Any]:
        """Return what the card of the converted network says about the publication."""
        names = ('name', 'url', 'licence', 'citation', 'top1', 'top1_source')
        return {name: value for name in names if (value := getattr(self, name))}

    def card_input(self) -> Input | None:
        """Return how images become the network's input, or None for the family's own convention."""
        if not self.input:
            return None
        sizes, interpolation, *half = self.input.split()
        size, resize = map(int, sizes.split('/'))
        return Input(size=size, resize=resize, interpolation=interpolation, **(_HALF if half else _IMAGENET))


def _rows() -> dict[str, Weights]:
    with open(pathlib.Path(__file__).with_suffix('.tsv'), encoding='utf-8', newline='') as file:
        rows = csv.DictReader(file, delimiter='\t', quoting=csv.QUOTE_NONE)
        return {row['name']: Weights(**row) for row in rows}


PUBLISHED = _rows()
# A short name is that of one row: torchvision's default, akamaster's for CIFAR-10, or one of timm's.
ALIASES = {f'resnet{n}': f'torchvision/resnet{n}_v{1 if n < 50 else 2}' for n in (18, 34, 50, 101, 152)}
ALIASES |= {
    name: f'torchvision/{name}_v{1 if name == "resnext101_64x4d" else 2}'
    for name in ('resnext50_32x4d', 'resnext101_32x8d', 'resnext101_64x4d', 'wide_resnet50_2', 'wide_resnet101_2')
}
ALIASES |= {f'resnet{n}': f'akamaster/resnet{n}' for n in (20, 32, 44, 56, 110, 1202)}
# Of timm's other networks the first row, but for one whose licence is not as free.
ALIASES['resnext101_32x4d'] = 'timm/resnext101_32x4d.gluon_in1k'
for _name in PUBLISHED:
    if _name.startswith('timm/'):
        ALIASES.setdefault(_name.removeprefix('timm/').partition('.')[0], _name)
