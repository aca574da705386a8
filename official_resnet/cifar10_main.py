"""Train a residual network on CIFAR-10.

    python cifar10_main.py --data_dir ~ --recipe=fast

Recipes, and what they gave on two cores (EPYC with AVX-512) and images that had been stored as JPEG (docs/results.md):

    official      ResNet-56 as official/resnet, 182 epochs: not yet measured
    paper         ResNet-56 of 1512.03385, 164 epochs: not yet measured
    fast          8 layers, 8 epochs: 90.23 % (n = 3) in 19 minutes
    classic_fast  ResNet-20, 20 epochs: 84.56 % (n = 1) in 18 minutes
    record        11 layers, 45 epochs: not yet measured
    demo          ResNet-8, synthetic images: 99.3 % (n = 1) in 2 minutes

official is the default. Flags that you pass override the recipe. docs/cifar.md says when to choose which. A missing
data set is downloaded. If a run is stopped or killed, run the same command again to continue.
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
