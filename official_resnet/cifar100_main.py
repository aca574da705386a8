"""Train a residual network on CIFAR-100.

    python cifar100_main.py --data_dir ~ --recipe=fast    # a network of 8 layers, 8 epochs
    python cifar100_main.py --data_dir ~                  # ResNet-56 as official/resnet trains it, 182 epochs
    python cifar100_main.py --recipe=demo                 # synthetic images, no download

Not yet measured. The recipes are those of cifar10_main.py: official (default), paper, fast, classic_fast, record, demo;
docs/cifar.md says when to choose which. Flags that you pass override the recipe. A missing data set is downloaded into
data_dir. If a run is stopped or killed, run the same command again to continue.
"""

import sys

try:
    from official_resnet.command_line.train_program import Program, entry
    from official_resnet.resnet_spec import cifar_spec
    from official_resnet.training import recipes
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

PROGRAM = Program({'cifar100': recipes.CIFAR}, cifar_spec, sizes='6n+2, for example 8, 14, 20')
run = entry(__doc__, PROGRAM)

if __name__ == '__main__':
    run()
