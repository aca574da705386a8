"""Measure how gradients reach the first layers: activation x batch norm, plain against residual, shallow and deep.

    python gradient_flow_main.py --data_dir ~ --quick                      # 20 and 56 layers, 60 steps of 64
    python gradient_flow_main.py --data_dir ~                              # 20, 56 and 110 layers, 300 steps of 128
    python gradient_flow_main.py --data_dir ~ --quick --batch_norm=off \\
        --init=normal_0.01 --nostandardize
    python gradient_flow_main.py --data_dir ~ --quick --activations=sigmoid \\
        --auxiliary_loss

On two cores, --quick took 6 minutes while other jobs were running (n = 1). The longer form has not been run. See
docs/experiments.md and docs/results.md for the figure and the numbers.

The program begins with chains of one neuron in each layer (gradient_chain.py), where the gradient is a product that
can be written down. Then it trains networks on CIFAR images and measures the root mean square of the gradient of each
convolution, before and during training. Each remedy for vanishing gradients has a flag: --init, --batch_norm,
--standardize, --auxiliary_loss. A ReLU removes the saturation of the sigmoid, but a deep plain network of ReLUs still
trains worse than a shallow one; shortcuts fix that. Without batch norm, each residual block of ReLUs doubles the
variance of its input, so a deep network may overflow, which is recorded.
If the program is stopped, run the same command again to continue.
--output_dir receives gradient_flow.png, chain.png and gradient_flow.json.
"""

import functools
import itertools
import json
import operator
import os
import sys
from collections.abc import Sequence
from typing import Any

try:
    from absl import flags as absl_flags

    from official_resnet.experiments import experiment_program
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

ACTIVATIONS = ('sigmoid', 'relu')


def define_flags() -> absl_flags.FlagValues:
    """Return the flags of this program."""
    define = experiment_program.cifar_flags('/tmp/resnet_gradient_flow', trains=False)
    text = 'Numbers of layers of the networks, each 6n+2; 20,56,110, with --quick 20,56.'
    experiment_program.define_list(define, 'depths', None, text)
    define.integer('steps', None, 'Number of training steps of a network; 300, with --quick 60.', None, 1)
    define.known('batch_size', None, text='Number of images in a step; 128, with --quick 64.')
    define.number('learning_rate', 0.01, 'Learning rate of SGD with momentum 0.9.', None, 0)
    experiment_program.define_list(define, 'activations', 'sigmoid,relu', 'sigmoid, relu or both.', ACTIVATIONS)
    define.enum('batch_norm', 'both', ['both', 'on', 'off'], 'Networks with batch norm, without it, or both.')
    text = 'Initializer of the convolutions: He et al., or a normal distribution with this standard deviation.'
    define.enum('init', 'he', ['he', 'normal_0.01', 'normal_1'], text)
    define.boolean('standardize', True, 'Give each image mean 0 and standard deviation 1, instead of values 0..255.')
    define.boolean('auxiliary_loss', False, 'Add a classifier with a loss after each group, not only after the last.')
    return define.values


def run_gradient_flow(values: absl_flags.FlagValues) -> None:
    """Measure the chains and the networks that the flags ask for, judge the claims, and write the results."""
    from official_resnet import files
    from official_resnet.experiments import gradient_chain, net_gradients, runs
    from official_resnet.inputs import datasets
    from official_resnet.training import devices

    dataset, data_dir = experiment_program.find_data(values)
    settings = {
        'dataset': dataset,
        'steps': values.steps or (60 if values.quick else 300),
        'batch_size': values.batch_size or (64 if values.quick else 128),
        **{name: values[name].value for name in ('learning_rate', 'init', 'standardize', 'auxiliary_loss', 'seed')},
    }
    runs.claim_folder(values.output_dir, settings)
    rows = gradient_chain.chain_table(values.seed)
    chain = {'three_layers': gradient_chain.document_chains(), 'random': rows}
    print(format_chain(rows))

    depths = sorted(set(map(int, values.depths or ((20, 56) if values.quick else (20, 56, 110)))))
    activations = [activation for activation in ACTIVATIONS if activation in values.activations]
    has_bns = {'both': (False, True), 'on': (True,), 'off': (False,)}[values.batch_norm]
    files.make_folder(f'{values.output_dir}/runs')

    @functools.cache
    def examples() -> Any:
        split = datasets.open_split(dataset, 'train', data_dir=data_dir)
        return split if values.standardize else split.with_normalization('none')

    nets = {}
    print(f'{"network":27} {"first / last, before":>20} {"after":>9} {"final loss":>11}')
    with devices.catch_signals() as received:
        for case in itertools.product(activations, has_bns, (False, True), depths):
            activation, has_bn, is_residual, depth = case
            name = f'{activation}-{"bn" if has_bn else "nobn"}-{"residual" if is_residual else "plain"}-{depth}'
            path = f'{values.output_dir}/runs/{name}.json'
            if not os.path.isfile(path):
                result = net_gradients.measure_net(case, examples(), settings, received)
                files.write_text(path, json.dumps(result) + '\n')
            nets[name] = net = runs.read_json(path, _require_whole)
            before, after = (_number(_ratio(net, sample)) for sample in (0, -1))
            print(f'{name:27} {before:>20} {after:>9} {_number(net["final_loss"]):>11}')
    claim = runs.print_claim(judge(nets, depths[0], depths[-1]))
    title = (
        f'Gradients of the convolutions, {runs.DATASET_NAMES[dataset]}, SGD {settings["learning_rate"]} with momentum '
        f'0.9, batch {settings["batch_size"]}, seed {settings["seed"]}\n'
        f'init {settings["init"]}, images {"" if settings["standardize"] else "not "}standardised, '
        f'{"with" if settings["auxiliary_loss"] else "no"} auxiliary loss'
    )

    norms = 'gradient_norms', nets, f'{values.output_dir}/gradient_flow.png', title
    chains = 'chain_gradients', rows, f'{values.output_dir}/chain.png'
    result = {'settings': settings, 'chain': chain, 'nets': nets, 'claim': claim}
    runs.finish(values.output_dir, 'gradient_flow', result, [norms, chains])


def judge(nets: dict[str, dict[str, Any]], shallow: int, deep: int) -> dict[str, bool | None]:
    """Return which statements about the networks hold, None for those whose networks are missing."""

    def loss(net) -> float:  # infinite if training diverged
        return float('inf') if net['diverged_at'] is not None else net['final_loss']

    sigmoid, relu, bn, residual = 'sigmoid-nobn-plain', 'relu-nobn-plain', 'relu-bn-plain', 'relu-bn-residual'
    # statement -> (what is compared, the network with less of it, the network with more, by at least which factor)
    statements = {
        'sigmoid_gradients_vanish_more_with_depth': (_ratio, f'{sigmoid}-{deep}', f'{sigmoid}-{shallow}', 10),
        'relu_gradients_vanish_less_than_sigmoid': (_ratio, f'{sigmoid}-{deep}', f'{relu}-{deep}', 10),
        'deep_plain_relu_trains_worse_than_shallow': (loss, f'{bn}-{shallow}', f'{bn}-{deep}', 1),
        'deep_residual_relu_trains_better_than_deep_plain': (loss, f'{residual}-{deep}', f'{bn}-{deep}', 1),
    }
    claim = {}
    for statement, (value, less, more, factor) in statements.items():
        small, large = (value(nets[name]) if name in nets else None for name in (less, more))
        claim[statement] = None if small is None or large is None or less == more else factor * small < large
    return claim


def _require_whole(net):
    """Raise any exception if a network lacks what is printed and drawn."""
    _number(net['final_loss']), net['diverged_at'], net['samples'][-1]
    for sample in net['samples']:
        sum(gradient or 0 for gradient in sample['gradients'][1:]), _ratio({'samples': [sample]}), sample['step'] + 0


def _ratio(net, sample=0):
    """Return the gradient of the first convolution / that of the last one, or None if it is not a number."""
    first, *_, last = net['samples'][sample]['gradients']
    return None if first is None or not last else first / last


def format_chain(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows of gradient_chain.chain_table as text: one line for each chain, one column for each length."""
    title = '|d output / d input| of chains of one neuron in each layer, weights of N(0, 1): median of those not 0'
    lengths = sorted({row['layers'] for row in rows})
    lines = [title, f'{"layers":20}' + ''.join(f'{length:>9}' for length in lengths)]
    for (name, shortcut), chain in itertools.groupby(rows, operator.itemgetter('activation', 'shortcut')):
        part = list(chain)
        lines.append(f'{name + ", shortcut" * shortcut:20}' + ''.join(f'{_number(row["median"]):>9}' for row in part))
        if any(row['zero_share'] for row in part):
            lines.append(f'{"  share that is 0":20}' + ''.join(f'{row["zero_share"]:9.3f}' for row in part))
    return '\n'.join(lines)


def _number(value):
    return '-' if value is None else f'{value:.3g}'


if __name__ == '__main__':
    sys.exit(experiment_program.run_experiment(sys.argv, __doc__, define_flags(), run_gradient_flow))
