"""A converted network gives PyTorch's answers to ImageNet's images, and the program can learn these images."""

import csv
import io
import json
import re

import numpy as np
import pytest
from fixtures import programs
from fixtures.imagenet_shards import write_sample
from PIL import Image

from checkpoints_tools import read_ckpt
from official_resnet import checkpoints

pytestmark = pytest.mark.parity
NUM_FIRST, NUM_SECOND = 60, 25  # of the sample's 105 images: those fitted, and those fitted to come second
OVERFIT = (
    '--recipe=fast -rs 18 --image_size=64 --eval_image_size=64 -bs 35 -te 25 --min_crop_area=0.8 --nozero_gamma '
    '--epochs_between_evals=25'
)


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    """Return (data_dir, [(JPEG, label, boxes)]) of the sample, as training and as validation images."""
    folder = tmp_path_factory.mktemp('sample')
    return folder, write_sample(folder)


@pytest.fixture(scope='module')
def peer(sample):
    """Return (torchvision's ResNet-18, its logits [105, 1000]): random, but its head knows some of the images."""
    import torch

    from benchmarks import torch_peer

    torchvision = torch_peer.import_torchvision()
    transforms = torchvision.transforms
    prepare = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    torch.manual_seed(0)
    net = torchvision.models.resnet18().train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches, with which random features say something
    images = torch.stack([prepare(Image.open(io.BytesIO(jpeg)).convert('RGB')) for jpeg, _, _ in sample[1]])
    head, net.fc = net.fc, torch.nn.Identity()
    with torch.no_grad():
        for part in images.split(35):
            net(part)
        net.eval()
        features = torch.cat([net(part) for part in images.split(35)])
        fit(head, features, torch.tensor([label for _, label, _ in sample[1]]))
        net.fc = head
        return net, head(features).numpy()


def fit(head, features, labels):
    """Set a linear layer so that it names the first images, puts the next ones second, and guesses the rest."""
    import torch

    count = NUM_FIRST + NUM_SECOND
    targets = torch.zeros(count, 1000)
    targets[range(count), labels[:count]] = torch.tensor([10.0] * NUM_FIRST + [7.0] * NUM_SECOND)
    targets[range(NUM_FIRST, count), labels[:NUM_SECOND]] = 10.0
    mean = features.mean(0)
    known = (features - mean)[:count]
    gram = known @ known.T
    weights = known.T @ torch.linalg.solve(gram + 1e-3 * gram.diagonal().mean() * torch.eye(count), targets)
    head.weight.copy_(weights.T)
    head.bias.copy_(-mean @ weights)


def test_evaluation_equals_pytorch_image_by_image(sample, peer, tmp_path):
    import torch

    data_dir, images = sample
    net, logits = peer
    torch.save(net.state_dict(), tmp_path / 'net.pth')
    model = tmp_path / 'net.keras'
    assert read_ckpt.main(['read_ckpt.py', '--input', str(tmp_path / 'net.pth'), '--output', str(model)]) == 0
    out = programs.succeed(
        f'imagenet_main --eval_only --pretrained_model_checkpoint_path={model} --data_dir={data_dir} '
        f'--model_dir={tmp_path / "none"} --eval_report={tmp_path / "report"}'
    )
    labels = np.array([label for _, label, _ in images])
    expected = logits.argmax(1)
    top1, top5 = (expected == labels).mean(), (np.argsort(-logits, 1)[:, :5] == labels[:, None]).any(1).mean()
    assert 0.4 < top1 < 0.7 < top5 < 0.95 and len(set(expected)) > 40
    print(f'top-1 {top1:.4f}, top-5 {top5:.4f} of {len(labels)} images; {out}')
    assert f'one crop: top-1 {top1:.4f}, top-5 {top5:.4f} (105 images)' in out
    report = json.loads((tmp_path / 'report' / 'report.json').read_text())
    guesses = {pair['true']: pair['guessed'] for pair in report['confusions']}  # each class has one image
    assert [guesses.get(label, label) for label in labels] == expected.tolist()
    with open(tmp_path / 'report' / 'per_class.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1000 and rows[0]['id'] == 'n01440764'


def test_the_program_learns_the_sample_by_heart(sample, tmp_path):
    """Train in a process of its own; each epoch crops and mirrors the images anew."""
    code, out, err = programs.run(f'imagenet_main --data_dir {sample[0]} --model_dir {tmp_path} {OVERFIT}', 900)
    assert code == 0, err
    *_, train, test = checkpoints.read_metrics(tmp_path)
    print(out)
    assert (train['split'], test['split'], train['epoch']) == ('train', 'test', 25)
    assert train['accuracy'] > 0.95 and test['accuracy'] > 0.9, out
    assert re.search(r'test accuracy 0\.9|test accuracy 1\.0', out)
