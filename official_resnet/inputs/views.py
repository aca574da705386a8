"""Options that decide how an encoded image becomes a network's input. The functions that use them are in encoded."""

import dataclasses

from official_resnet import errors
from official_resnet.inputs.datasets import MAX_IMAGE_SIZE

RESIZES = ('tf1', 'antialias', 'bicubic')
CROPS = ('tensorflow', 'torch', 'pad')
_SIDE = {'least': 8, 'most': MAX_IMAGE_SIZE}  # bounds of an image's height and width in pixels


def _flag(default, text, **about):
    """Return a field that has a flag, see training.config.setting."""
    about = {'group': 'Data', 'streams': True, 'is_open': True, **about}
    return dataclasses.field(default=default, metadata={'text': text, **about})


@dataclasses.dataclass(frozen=True)
class Views:
    """How an encoded image of any size becomes the network's input. The defaults are official/resnet's.

    Attributes:
        test_resize: Pixels of the shorter side before evaluation crops. None keeps the ratio 256 : 224 to `test_size`.
        min_area: Least area of a training crop. arXiv:1409.4842 Sec. 6 has 0.08.
        use_boxes: If an image has no box, a crop contains at least a tenth of the image.
        resize: 'tf1' is TensorFlow 1's bilinear resize, aligned at the upper left corners and not antialiased. It uses
            the fast JPEG transform, TensorFlow's default. 'antialias' is the bilinear resize of Pillow, and so of
            torchvision, without their rounding to whole numbers. It uses the accurate JPEG transform. 'bicubic' is the
            same with Pillow's bicubic filter, cut off at 0 and 255.
        crop: What draws training crops. 'tensorflow' is sample_distorted_bounding_box, 'torch' is RandomResizedCrop of
            torchvision, whose crops are larger on average and which knows no boxes. 'pad' is for small images, whose
            objects fill them: the middle, padded by an eighth of its size, is cropped at a random place (CIFAR's
            crop by 4 of 32 pixels, arXiv:1512.03385 Sec. 4.2).
        uses_exif: Whether an image is turned as its EXIF says. None: the data set decides. ILSVRC2012 is not turned.
    """

    size: int = _flag(
        224, 'Height and width, in pixels, that training images are cropped and resized to.', flag='image_size', **_SIDE
    )
    test_size: int = _flag(
        224,
        'Height and width, in pixels, of the central crop in evaluation; the default is --image_size.',
        flag='eval_image_size',
        **_SIDE,
    )
    test_resize: int | None = _flag(
        None, 'Pixels of the shorter side before evaluation crops; by default 256 for 224.', flag='eval_resize', least=8
    )
    min_area: float = _flag(
        0.05,
        'Least area of a training crop, as a fraction of the image.',
        flag='min_crop_area',
        needs='augment',
        least=0,
        most=1,
    )
    use_boxes: bool = _flag(True, 'Training crops contain at least a tenth of a bounding box, if the image has one.')
    resize: str = _flag(
        'tf1', "TensorFlow 1's bilinear resize, or Pillow's bilinear (torchvision) or bicubic.", words=RESIZES
    )
    crop: str = _flag(
        'tensorflow',
        "What draws training crops: TensorFlow's sample_distorted_bounding_box, torchvision's RandomResizedCrop, which "
        'ignores boxes, or pad, which pads the middle of the image by an eighth and crops it without scaling.',
        flag='crop_sampler',
        needs='augment',
        words=CROPS,
    )
    uses_exif: bool | None = None
    first_size: int | None = _flag(
        None,
        'Height and width of training images at first; they grow to --image_size.',
        flag='first_image_size',
        needs='augment',
        **_SIDE,
    )
    size_ramp: tuple[float, ...] = _flag(
        (0.4, 0.8),
        'Between which fractions of the epochs training images grow, in steps of 32 pixels.',
        needs='first_image_size',
    )

    def __post_init__(self):
        for flag, word, words in (('resize', self.resize, RESIZES), ('crop_sampler', self.crop, CROPS)):
            if word not in words:
                raise errors.UserError(f'--{flag}={word} must be one of {", ".join(words)}')
        if self.crop != 'tensorflow' and self.use_boxes:
            raise errors.UserError(
                f'--crop_sampler={self.crop} knows no boxes; pass --nouse_boxes, or --crop_sampler=tensorflow to use '
                'boxes'
            )
        for flag, size in (('image_size', self.size), ('eval_image_size', self.test_size)):
            if size < 1:
                raise errors.UserError(f'--{flag}={size} must be 1 or more')
        if not 0 < self.min_area <= 1:
            raise errors.UserError(f'--min_crop_area={self.min_area} must be above 0 and at most 1')
        object.__setattr__(self, 'size_ramp', tuple(self.size_ramp))  # a list, from JSON
        if len(self.size_ramp) != 2 or not 0 <= self.size_ramp[0] <= self.size_ramp[1] <= 1:
            raise errors.UserError(
                f'--size_ramp={",".join(map(str, self.size_ramp))} must be two rising fractions, 0..1'
            )
        if self.first_size is not None and not 1 <= self.first_size <= self.size:
            raise errors.UserError(f'--first_image_size={self.first_size} must be 1 to --image_size={self.size}')
        if self.first_size is not None and self.crop == 'pad':
            raise errors.UserError(
                f'--first_image_size={self.first_size} needs crops that scale, not --crop_sampler=pad; leave it out'
            )
        if self.test_resize is not None and self.test_resize < self.test_size:
            fault = f'--eval_resize={self.test_resize} leaves fewer than {self.test_size} pixels to crop'
            raise errors.UserError(f'{fault}; pass {self.test_size} or more')

    def with_exif(self, is_own: bool) -> 'Views':
        """Return the same views for a data set, which are your own images or not."""
        return dataclasses.replace(self, uses_exif=is_own) if self.uses_exif is None else self

    @property
    def dct_method(self) -> str:
        """The argument `dct_method` of tf.io.decode_jpeg."""
        return 'INTEGER_FAST' if self.resize == 'tf1' else 'INTEGER_ACCURATE'

    def size_in(self, epoch: int, num_epochs: int) -> int:
        """Return the height and width of training images in an epoch of `num_epochs`.

        From first_size they grow linearly while size_ramp lasts, rounded to steps of 32 pixels as in ffcv-imagenet.
        """
        if self.first_size is None:
            return self.size
        begin, end = (fraction * num_epochs for fraction in self.size_ramp)
        if epoch >= end:
            return self.size
        grown = (self.size - self.first_size) * (epoch - begin) / (end - begin) if epoch > begin else 0
        return min(self.first_size + int(grown / 32 + 0.5) * 32, self.size)

    @property
    def shorter_side(self) -> int:
        """Pixels to which evaluation resizes the shorter side."""
        return self.test_resize or round(self.test_size * 256 / 224)
