"""A converted net on ImageNet's pictures: the same answers as PyTorch gives. And the program can learn them."""

import csv
import io
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from fixtures.imagenet_shards import write_sample
from PIL import Image

import official_resnet
from checkpoints_tools import read_ckpt
from official_resnet import checkpoints, imagenet_main
from official_resnet.command_line import train_program
from official_resnet.training import devices

pytestmark = pytest.mark.parity
PROGRAM = pathlib.Path(official_resnet.__file__).with_name('imagenet_main.py')
NUM_FIRST, NUM_SECOND = 60, 25  # of the sample's 105 pictures: fitted, and fitted to come second
OVERFIT = [
    '--recipe=fast',
    '-rs',
    '18',
    '--image_size=64',
    '--eval_image_size=64',
    '-bs',
    '35',
    '-te',
    '25',
    '--min_crop_area=0.8',
    '--nozero_gamma',
    '--epochs_between_evals=25',
]


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    """(data_dir, [(JPEG, label, boxes)]) of the sample, as training and as validation pictures."""
    folder = tmp_path_factory.mktemp('sample')
    return folder, write_sample(folder)


@pytest.fixture(scope='module')
def peer(sample):
    """(torchvision's ResNet-18, its logits [105, 1000]): random, but for a head that knows some of the pictures."""
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
    """Set a linear layer so that it is right in the first pictures, second in the next, and anything in the rest."""
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


def test_evaluation_equals_pytorch_picture_by_picture(sample, peer, tmp_path, capsys, monkeypatch):
    import torch

    data_dir, pictures = sample
    net, logits = peer
    torch.save(net.state_dict(), tmp_path / 'net.pth')
    model = tmp_path / 'net.keras'
    assert read_ckpt.main(['read_ckpt.py', '--input', str(tmp_path / 'net.pth'), '--output', str(model)]) == 0
    capsys.readouterr()
    monkeypatch.setattr(devices, 'start_tensorflow', lambda *threads: None)
    assert (
        train_program.main(
            [
                'imagenet_main.py',
                '--eval_only',
                f'--pretrained_model_checkpoint_path={model}',
                f'--data_dir={data_dir}',
                f'--model_dir={tmp_path / "none"}',
                f'--eval_report={tmp_path / "report"}',
            ],
            '',
            imagenet_main.PROGRAM,
        )
        == 0
    )
    out = capsys.readouterr().out

    labels = np.array([label for _, label, _ in pictures])
    expected = logits.argmax(1)
    top1, top5 = (expected == labels).mean(), (np.argsort(-logits, 1)[:, :5] == labels[:, None]).any(1).mean()
    assert 0.4 < top1 < 0.7 < top5 < 0.95 and len(set(expected)) > 40
    print(f'top-1 {top1:.4f}, top-5 {top5:.4f} of {len(labels)} pictures; {out}')
    assert f'one crop: top-1 {top1:.4f}, top-5 {top5:.4f} (105 images)' in out
    report = json.loads((tmp_path / 'report' / 'report.json').read_text())
    guesses = {pair['true']: pair['guessed'] for pair in report['confusions']}  # each class has one picture
    assert [guesses.get(label, label) for label in labels] == expected.tolist()
    with open(tmp_path / 'report' / 'per_class.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1000 and rows[0]['id'] == 'n01440764'


def test_the_program_learns_the_sample_by_heart(sample, tmp_path):
    """The command of the README, in a process of its own; the pictures are cropped and mirrored anew in each epoch."""
    command = [sys.executable, PROGRAM, '--data_dir', sample[0], '--model_dir', tmp_path, *OVERFIT]
    process = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr
    *_, train, test = checkpoints.read_metrics(tmp_path)
    print(process.stdout)
    assert (train['split'], test['split'], train['epoch']) == ('train', 'test', 25)
    assert train['accuracy'] > 0.95 and test['accuracy'] > 0.9, process.stdout
    assert re.search(r'test accuracy 0\.9|test accuracy 1\.0', process.stdout)
