"""Train a residual network on your own images: a folder with a subfolder for each class, or a CSV file.

    python image_folder_main.py --image_folder DIR
    python image_folder_main.py --image_list train.csv      # begins with path,label
    python image_folder_main.py --image_folder DIR --transfer=head \\
        --pretrained_model_checkpoint_path=resnet18
    python image_folder_main.py --eval_only --model_dir=/tmp/image_folder_model

The program prints what it understood (classes, images of each, split, sizes), and chooses the network, the size of its
input, the batch size and the epochs by the number and the size of the images. Each choice is printed with its reason;
the flag at its beginning changes it. Images are streamed from the disk, however many there are. Weights are downloaded
only if you name them. docs/own_images.md has the rules.

On two cores of a Xeon with AMX, 1,000 images of CIFAR-10 in 10 folders took 2.4 minutes and reached 54 % on 10,000
others; 74 photographs of animals and things took 4.4 minutes and reached 77 % on 31 others (both from random weights,
n = 1). docs/results.md has more.

If a run is stopped or killed, run the same command again to continue.
Recipes: fast or small, whichever fits the images; imagenet_main.py explains the others.
"""

import sys

try:
    from official_resnet import resnet_variants
    from official_resnet.command_line.train_program import Program, entry
    from official_resnet.training.recipes_imagenet import IMAGENET, SMALL_IMAGES
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

PROGRAM = Program(
    {'image_folder': IMAGENET | {'small': SMALL_IMAGES}},
    resnet_variants.imagenet_spec,
    sizes=', '.join(map(str, resnet_variants.IMAGENET_BLOCKS)),
    versions=('1', '1.5', '2'),
    streams=True,
    chooses_network=True,
)
run = entry(__doc__, PROGRAM)

if __name__ == '__main__':
    run()
