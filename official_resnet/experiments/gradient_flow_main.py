"""Measure how gradients reach the first layers: activation x batch norm, plain against residual, shallow and deep.

    python gradient_flow_main.py --data_dir ~ --quick                      # 20 and 56 layers, 60 steps of 64
    python gradient_flow_main.py --data_dir ~                              # 20, 56 and 110 layers, 300 steps of 128
    python gradient_flow_main.py --data_dir ~ --quick --batch_norm=off --init=normal_0.01 --nostandardize
    python gradient_flow_main.py --data_dir ~ --quick --activations=sigmoid --auxiliary_loss

On two cores, quick took 6 minutes beside other jobs; README shows the figure. The longer form has not been run.

First a chain of one neuron a layer (gradient_chain.py), where the gradient is a product that can be written down. Then
nets on CIFAR images: root mean square of each convolution's gradient, before training and during it. A remedy of
vanishing gradients is a flag each: --init, --batch_norm, --standardize, --auxiliary_loss. A ReLU takes away the
saturation of the sigmoid, yet a deep plain chain of them still trains worse than a shallow one; shortcuts fix that.
Without BN, each residual block of ReLUs doubles the variance of its input: a deep one may overflow, which is recorded.
The same command continues what was stopped. Results in --output_dir: gradient_flow.png, chain.png, gradient_flow.json.
"""

import functools
import itertools
import json
import operator
import os
import sys

try:
    from official_resnet.experiments import experiment_program
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

ACTIVATIONS = ('sigmoid', 'relu')


def define_flags():
    """Return the flags, in a set of their own."""
    define = experiment_program.cifar_flags('/tmp/resnet_gradient_flow', trains=False)
    text = 'Layers of the nets, each 6n+2; 20,56,110, with --quick 20,56.'
    experiment_program.define_list(define, 'depths', None, text)
    define.integer('steps', None, 'Number of steps to train a net; 300, with --quick 60.', None, 1)
    define.known('batch_size', None, text='Number of images in a step; 128, with --quick 64.')
    define.number('learning_rate', 0.01, 'Learning rate of SGD with momentum 0.9.', None, 0)
    experiment_program.define_list(define, 'activations', 'sigmoid,relu', 'sigmoid, relu or both.', ACTIVATIONS)
    define.enum('batch_norm', 'both', ['both', 'on', 'off'], 'Nets with BN, without, or both.')
    text = 'Initializer of the convolutions: He et al., or a normal distribution of this standard deviation.'
    define.enum('init', 'he', ['he', 'normal_0.01', 'normal_1'], text)
    define.boolean('standardize', True, 'Give each image mean 0 and deviation 1; else it stays in 0..255.')
    define.boolean('auxiliary_loss', False, 'A classifier and its loss after each group, not only the last.')
    return define.values


def run_gradient_flow(values):
    """Measure the chain and the nets the flags ask for, judge, write the results."""
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
    chain = {'three_layers': gradient_chain.document_chains(), 'random': gradient_chain.chain_table(values.seed)}
    print(format_chain(chain['random']))

    depths = sorted(set(map(int, values.depths or ((20, 56) if values.quick else (20, 56, 110)))))
    activations = [activation for activation in ACTIVATIONS if activation in values.activations]
    norms = {'both': (False, True), 'on': (True,), 'off': (False,)}[values.batch_norm]
    os.makedirs(f'{values.output_dir}/runs', exist_ok=True)

    @functools.cache
    def examples():
        split = datasets.open_split(dataset, 'train', data_dir=data_dir)
        return split if values.standardize else split.with_normalization('none')

    nets = {}
    print(f'{"net":27} {"first / last, before":>20} {"after":>9} {"final loss":>11}')
    with devices.catch_signals() as received:
        for case in itertools.product(activations, norms, (False, True), depths):
            activation, has_bn, is_residual, depth = case
            name = f'{activation}-{"bn" if has_bn else "nobn"}-{"residual" if is_residual else "plain"}-{depth}'
            path = f'{values.output_dir}/runs/{name}.json'
            if not os.path.isfile(path):
                result = net_gradients.measure_net(case, examples(), settings, received)
                files.write_text(path, json.dumps(result) + '\n')
            nets[name] = net = runs.read_json(path)
            before, after = (_number(_ratio(net, sample)) for sample in (0, -1))
            print(f'{name:27} {before:>20} {after:>9} {_number(net["final_loss"]):>11}', flush=True)
    claim = runs.print_claim(judge(nets, depths[0], depths[-1]))
    title = (
        f'Gradients of the convolutions, {runs.DATASET_NAMES[dataset]}, SGD {settings["learning_rate"]} with momentum '
        f'0.9, batch {settings["batch_size"]}, seed {settings["seed"]}\n'
        f'init {settings["init"]}, images {"" if settings["standardize"] else "not "}standardised, '
        f'{"with" if settings["auxiliary_loss"] else "no"} auxiliary loss'
    )

    norms = 'gradient_norms', nets, f'{values.output_dir}/gradient_flow.png', title
    chains = 'chain_gradients', chain['random'], f'{values.output_dir}/chain.png'
    result = {'settings': settings, 'chain': chain, 'nets': nets, 'claim': claim}
    runs.finish(values.output_dir, 'gradient_flow', result, [norms, chains])


def judge(nets, shallow, deep):
    """Return which statements about the nets hold, {statement: True, False, or None where nets are missing}."""

    def loss(net):  # a net that diverged has lost
        return float('inf') if net['diverged_at'] is not None else net['final_loss']

    sigmoid, relu, bn, residual = 'sigmoid-nobn-plain', 'relu-nobn-plain', 'relu-bn-plain', 'relu-bn-residual'
    # statement -> (what is compared, the net that has less of it, the net that has more, how many times as much)
    statements = {
        'sigmoid_gradients_vanish_more_with_depth': (_ratio, f'{sigmoid}-{deep}', f'{sigmoid}-{shallow}', 10),
        'relu_gradients_vanish_less_than_sigmoid': (_ratio, f'{sigmoid}-{deep}', f'{relu}-{deep}', 10),
        'deep_plain_relu_trains_worse_than_shallow': (loss, f'{bn}-{shallow}', f'{bn}-{deep}', 1),
        'deep_residual_relu_trains_better_than_deep_plain': (loss, f'{residual}-{deep}', f'{bn}-{deep}', 1),
    }
    claim = {}
    for statement, (value, less, more, factor) in statements.items():
        values = [value(nets[name]) if name in nets else None for name in (less, more)]
        claim[statement] = None if None in values or less == more else factor * values[0] < values[1]
    return claim


def _ratio(net, sample=0):
    """Return the first convolution's gradient relative to the last one's; None where it is not a number."""
    first, *_, last = net['samples'][sample]['gradients']
    return None if first is None or not last else first / last


def format_chain(rows):
    """Return the table of gradient_chain.chain_table: a line a chain, a column a length."""
    title = '|d output / d input| of a chain of one neuron a layer, N(0, 1) weights: median of those not 0'
    lengths = sorted({row['layers'] for row in rows})
    lines = [title, f'{"layers":20}' + ''.join(f'{length:>9}' for length in lengths)]
    for (name, shortcut), part in itertools.groupby(rows, operator.itemgetter('activation', 'shortcut')):
        part = list(part)
        lines.append(f'{name + ", shortcut" * shortcut:20}' + ''.join(f'{_number(row["median"]):>9}' for row in part))
        if any(row['zero_share'] for row in part):
            lines.append(f'{"  share that is 0":20}' + ''.join(f'{row["zero_share"]:9.3f}' for row in part))
    return '\n'.join(lines)


def _number(value):
    return '-' if value is None else f'{value:.3g}'


if __name__ == '__main__':
    sys.exit(experiment_program.run_experiment(sys.argv, __doc__, define_flags(), run_gradient_flow))
