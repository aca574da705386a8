"""Train a residual network on ImageNet (ILSVRC2012), or on your own images of any size.

    python imagenet_main.py --data_dir ~/imagenet-data -bs 256           # ResNet-50 as official/resnet trained it
    python imagenet_main.py --data_dir ~/imagenet-data --recipe=fast     # 16 epochs at 160 pixels
    python imagenet_main.py --image_folder ~/images -rs 18               # a subfolder for each class
    python imagenet_main.py --tfds=imagenet2012 --data_dir ~/tensorflow_datasets
    python imagenet_main.py --eval_only --data_dir ~/imagenet-data \\
        --pretrained_model_checkpoint_path net.keras

Recipes of ResNet-50, and the top-1 accuracies that their sources published. This project has not yet run any recipe on
the whole of ImageNet. docs/imagenet.md says when to choose which.

    official              90 epochs, 224 pixels, as official/resnet: 76.5
    fb                    90 epochs, 224 pixels, as 1706.02677: 76.4
    fast                  16 epochs, 160 pixels, by this project: none
    ffcv_16, _40, _88     160 to 192 pixels: 73.8, 77.2, 78.4
    mosaic_mild           36 epochs, 88 to 176 pixels: 76.6 in 32 epochs
    mosaic_medium         135 epochs, 88 to 176 pixels, without its SAM: none
    a3, a2, a1            100, 300, 600 epochs of 2110.00476: 78.1, 79.8, 80.4
    torchvision_v2        600 epochs, 176 pixels, IMAGENET1K_V2: 80.86

official is the default. Flags that you pass override the recipe.

data_dir holds TFRecord shards, train-00000-of-01024 ... and validation-00000-of-00128 ... or another number of them.
data/download_and_preprocess_imagenet.py builds them. Images are streamed from the disk.
If a run is stopped or killed, run the same command again to continue at the same step, with the same images.
"""

import sys

try:
    from official_resnet import resnet_variants
    from official_resnet.command_line.train_program import Program, entry
    from official_resnet.training.recipes_imagenet import FINE_TUNE, IMAGENET
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

PROGRAM = Program(
    {'imagenet': IMAGENET},
    resnet_variants.imagenet_spec,
    sizes=', '.join(map(str, resnet_variants.IMAGENET_BLOCKS)),
    versions=('1', '1.5', '2'),
    streams=True,
    synthetic='synthetic224',
    fine_tune=FINE_TUNE,
)
run = entry(__doc__, PROGRAM)

if __name__ == '__main__':
    run()
