"""Measure how gradients reach the first layers: activation x batch norm, plain against residual, shallow and deep.

    python gradient_flow_main.py --data_dir ~ --quick                      # 20 and 56 layers, 60 steps of 64
    python gradient_flow_main.py --data_dir ~                              # 20, 56 and 110 layers, 300 steps of 128
    python gradient_flow_main.py --data_dir ~ --quick --batch_norm=off --init=normal_0.01 --nostandardize
    python gradient_flow_main.py --data_dir ~ --quick --activations=sigmoid --auxiliary_loss

On two cores, quick took 6 minutes beside other jobs; README shows the figure. The longer form has not been run.

First a chain of one neuron a layer (gradient_chain.py), where the gradient is a product that can be written down. Then
nets on CIFAR pictures: root mean square of each convolution's gradient, before training and during it. A remedy of
vanishing gradients is a flag each: --init, --batch_norm, --standardize, --auxiliary_loss. A ReLU takes away the
saturation of the sigmoid, yet a deep plain chain of them still trains worse than a shallow one; shortcuts mend that.
Without BN, each residual block of ReLUs doubles the variance of its input: a deep one may overflow, which is recorded.
The same command continues what was stopped. Results in --output_dir: gradient_flow.png, chain.png, gradient_flow.json.
"""

import functools
import json
import pathlib
import sys

try:
    from absl import flags as absl_flags

    from official_resnet.command_line import definer
    from official_resnet.experiments import experiment_program
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

ACTIVATIONS = ('sigmoid', 'relu')


def define_flags():
    """Return the flags, in a set of their own."""
    values = absl_flags.FlagValues()
    define = definer.Definer(values)
    experiment_program.define_flags(values, '/tmp/resnet_gradient_flow')
    experiment_program.define_depths(values, None, '; 20,56,110, with --quick 20,56')
    define.integer('steps', None, 'Number of steps to train a net; 300, with --quick 60.', None, 1)
    define.known('batch_size', None, text='Number of images in a step; 128, with --quick 64.')
    define.number('learning_rate', 0.01, 'Learning rate of SGD with momentum 0.9.', None, 0)
    experiment_program.define_names(values, 'activations', ACTIVATIONS, 'sigmoid, relu or both.')
    define.enum('batch_norm', 'both', ['both', 'on', 'off'], 'Nets with BN, without, or both.')
    text = 'Initializer of the convolutions: He et al., or a normal distribution of this standard deviation.'
    define.enum('init', 'he', ['he', 'normal_0.01', 'normal_1'], text)
    define.boolean('standardize', True, 'Give each image mean 0 and deviation 1; else it stays in 0..255.')
    define.boolean('auxiliary_loss', False, 'A classifier and its loss after each group, not only the last.')
    return values


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

    depths = experiment_program.depths(values, (20, 56) if values.quick else (20, 56, 110))
    cases = [
        (activation, has_bn, is_residual, depth)
        for activation in ACTIVATIONS
        if activation in values.activations
        for has_bn in {'both': (False, True), 'on': (True,), 'off': (False,)}[values.batch_norm]
        for is_residual in (False, True)
        for depth in depths
    ]
    folder = pathlib.Path(values.output_dir) / 'runs'
    folder.mkdir(exist_ok=True)

    @functools.cache
    def examples():
        split = datasets.open_split(dataset, 'train', data_dir=data_dir)
        return split if values.standardize else split.with_normalization('none')

    nets = {}
    print(f'{"net":27} {"first / last, before":>20} {"after":>9} {"final loss":>11}')
    with devices.catch_signals() as received:
        for case in cases:
            name = net_name(*case)
            path = folder / f'{name}.json'
            if not path.is_file():
                result = net_gradients.measure_net(case, examples(), settings, received)
                files.write_text(path, json.dumps(result) + '\n')
            nets[name] = net = runs.read_json(path)
            before, after = (_number(_first_over_last(net, sample)) for sample in (0, -1))
            print(f'{name:27} {before:>20} {after:>9} {_number(net["final_loss"]):>11}', flush=True)
    claim = judge(nets, depths[0], depths[-1])
    runs.print_claim(claim)
    draw = functools.partial(_draw, values.output_dir, chain['random'], nets, settings, runs.DATASET_NAMES[dataset])
    runs.finish(
        values.output_dir, 'gradient_flow', {'settings': settings, 'chain': chain, 'nets': nets, 'claim': claim}, draw
    )


def net_name(activation, has_bn, is_residual, depth):
    """Return a case's name, as 'relu-bn-plain-56'."""
    return f'{activation}-{"bn" if has_bn else "nobn"}-{"residual" if is_residual else "plain"}-{depth}'


def judge(nets, shallow, deep):
    """Return which statements about the nets hold, {statement: True, False, or None where nets are missing}."""

    def compared(first, second, value, is_true):
        values = [value(nets[net_name(*case)]) if net_name(*case) in nets else None for case in (first, second)]
        return None if None in values or first == second else is_true(*values)

    def ratio(net):
        return _first_over_last(net, 0)

    def final_loss(net):  # a net that diverged has lost
        return float('inf') if net['diverged_at'] is not None else net['final_loss']

    return {
        'sigmoid_gradients_vanish_more_with_depth': compared(
            ('sigmoid', False, False, deep), ('sigmoid', False, False, shallow), ratio, lambda a, b: a < b / 10
        ),
        'relu_gradients_vanish_less_than_sigmoid': compared(
            ('relu', False, False, deep), ('sigmoid', False, False, deep), ratio, lambda a, b: a > 10 * b
        ),
        'deep_plain_relu_trains_worse_than_shallow': compared(
            ('relu', True, False, deep), ('relu', True, False, shallow), final_loss, lambda a, b: a > b
        ),
        'deep_residual_relu_trains_better_than_deep_plain': compared(
            ('relu', True, True, deep), ('relu', True, False, deep), final_loss, lambda a, b: a < b
        ),
    }


def _first_over_last(net, sample):
    """Return the first convolution's gradient relative to the last one's; None where it is not a number."""
    gradients = net['samples'][sample]['gradients']
    if None in (gradients[0], gradients[-1]) or not gradients[-1]:
        return None
    return gradients[0] / gradients[-1]


def format_chain(rows):
    """Return the table of gradient_chain.chain_table: a line a chain, a column a length."""
    lengths = sorted({row['layers'] for row in rows})
    lines = [
        '|d output / d input| of a chain of one neuron a layer, N(0, 1) weights: median of those not 0',
        f'{"layers":20}' + ''.join(f'{length:>9}' for length in lengths),
    ]
    for start in range(0, len(rows), len(lengths)):
        part = rows[start : start + len(lengths)]
        name = part[0]['activation'] + (', shortcut' if part[0]['shortcut'] else '')
        lines.append(f'{name:20}' + ''.join(f'{_number(row["median"]):>9}' for row in part))
        if any(row['zero_share'] for row in part):
            lines.append(f'{"  share that is 0":20}' + ''.join(f'{row["zero_share"]:9.3f}' for row in part))
    return '\n'.join(lines)


def _number(value):
    return '-' if value is None else f'{value:.3g}'


def _draw(output_dir, chain_rows, nets, settings, data, figures):
    """Draw both figures; return their paths."""
    remedies = (
        f'init {settings["init"]}, pictures {"" if settings["standardize"] else "not "}standardised, '
        f'{"with" if settings["auxiliary_loss"] else "no"} auxiliary loss'
    )
    title = (
        f'Gradients of the convolutions, {data}, SGD {settings["learning_rate"]} with momentum 0.9, '
        f'batch {settings["batch_size"]}, seed {settings["seed"]}\n{remedies}'
    )
    return [
        figures.gradient_norms(nets, f'{output_dir}/gradient_flow.png', title),
        figures.chain_gradients(chain_rows, f'{output_dir}/chain.png'),
    ]


if __name__ == '__main__':
    sys.exit(experiment_program.run_experiment(sys.argv, __doc__, define_flags(), run_gradient_flow))
