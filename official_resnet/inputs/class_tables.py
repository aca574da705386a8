"""Names of the classes of the known data sets, in the order of their labels."""

import functools
from pathlib import Path

# In the order of the labels: batches.meta.txt and fine_label_names.txt of the archives.
CIFAR10_CLASSES = tuple('airplane automobile bird cat deer dog frog horse ship truck'.split())
CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
    shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
    telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()
)
MNIST_CLASSES = tuple('0123456789')
FASHION_MNIST_CLASSES = (  # of github.com/zalandoresearch/fashion-mnist, section Labels
    'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
)  # fmt: skip


@functools.lru_cache
def imagenet_classes():
    """Return ((id, name), ...) of ILSVRC2012's 1000 classes in the order of their labels; ids are WordNet's."""
    text = Path(__file__).with_name('imagenet_labels.tsv').read_text(encoding='utf-8')
    return tuple(tuple(line.split('\t')) for line in text.splitlines())
