"""Train a residual network on CIFAR-10.

    python cifar10_main.py --data_dir ~ --recipe=fast    # a network of 8 layers, 8 epochs
    python cifar10_main.py --data_dir ~                  # ResNet-56 as official/resnet trains it, 182 epochs
    python cifar10_main.py --recipe=demo                 # synthetic images, no download: 99.3 % in 2 minutes (n = 1)

On two cores of an EPYC with AVX-512 and images that had been stored as JPEG, fast took 19 minutes and reached 90.23 %
(n = 3), classic_fast 18 minutes and 84.56 % (n = 1). docs/results.md has the conditions. The other recipes have not
yet been measured.

A missing data set is downloaded into data_dir. If a run is stopped or killed, run the same command again to continue.
Recipes: official (default), paper, fast, classic_fast, record, demo. Flags that you pass override the recipe.
"""

import sys

try:
    from official_resnet.command_line.train_program import Program, entry
    from official_resnet.resnet_spec import cifar_spec
    from official_resnet.training import recipes
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

PROGRAM = Program({'cifar10': recipes.CIFAR}, cifar_spec, sizes='6n+2, for example 8, 14, 20')
run = entry(__doc__, PROGRAM)

if __name__ == '__main__':
    run()
