"""Compare shortcuts and orders of BN, ReLU and addition: 1603.05027 Table 1 / Fig. 2 and Table 2 / Fig. 4.

    python shortcuts_main.py --data_dir ~ --quick                          # ResNet-20: minutes on two cores
    python shortcuts_main.py --data_dir ~ --quick --rows=original,conv_shortcut
    python shortcuts_main.py --data_dir ~                                  # ResNet-110, 64,000 steps each

On two cores, --quick took 13 minutes while other jobs were running (n = 1): original 55.3 % test error, 1x1
convolutions 56.0, dropout 88.8, ReLU-only pre-activation 52.2. ResNet-110 has not been run. See docs/experiments.md and
docs/results.md for the figure and the numbers.

--quick trains ResNet-20 on the first 10,000 training images for 4 epochs; a bad shortcut harms it less than the paper's
ResNet-110. As in the paper, networks of 110 layers or more begin with about an epoch at a tenth of the learning rate. A
network whose loss is not finite is recorded as failed. If the program is stopped, run the same command again to
continue; finished networks are kept. --output_dir receives shortcuts.png and shortcuts.json.
"""

import sys
from typing import Any, NamedTuple

try:
    from absl import flags as absl_flags

    from official_resnet.experiments import experiment_program
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

QUICK_SIZE, PAPER_SIZE = 20, 110


class Row(NamedTuple):
    """One network of the comparison."""

    label: str  # in the figure, as in the paper's tables
    paper_error: float | None  # test error of ResNet-110 on CIFAR-10, %, median of 5 runs; None is "fail", above 20 %
    axes: dict[str, Any] = {}  # arguments of cifar_spec
    experiment: dict[str, Any] = {}  # fields of blocks.Experiment


ROWS = {
    'original': Row('original: x + F, ReLU after the sum', 6.61),
    # 1603.05027 Table 1
    'scaled_shortcut': Row('0.5 x + F', None, experiment={'shortcut_scale': 0.5}),
    'scaled_both': Row('0.5 x + 0.5 F', 12.35, experiment={'shortcut_scale': 0.5, 'residual_scale': 0.5}),
    'exclusive_gate': Row('(1 - g) x + g F, bias -6', 8.70, experiment={'gate': 'exclusive', 'gate_bias': -6.0}),
    'shortcut_gate_0': Row('(1 - g) x + F, bias 0', 12.86, experiment={'gate': 'shortcut_only'}),
    'shortcut_gate': Row('(1 - g) x + F, bias -6', 6.91, experiment={'gate': 'shortcut_only', 'gate_bias': -6.0}),
    'conv_shortcut': Row('1x1 conv x + F', 12.22, {'shortcut': 'C'}),
    'dropout_shortcut': Row('dropout 0.5 x + F', None, experiment={'shortcut_dropout': 0.5}),
    # 1603.05027 Table 2
    'bn_after_addition': Row('BN after addition', 8.17, experiment={'order': 'bn_after_addition'}),
    'relu_before_addition': Row('ReLU before addition', 7.84, experiment={'order': 'relu_before_addition'}),
    'relu_only_preactivation': Row(
        'ReLU-only pre-activation', 6.71, {'stem_bn': False}, {'order': 'relu_only_preactivation'}
    ),
    'full_preactivation': Row('full pre-activation', 6.37, {'version': '2'}),
}
ORDERS = ('bn_after_addition', 'relu_before_addition', 'relu_only_preactivation', 'full_preactivation')


def define_flags() -> absl_flags.FlagValues:
    """Return the flags of this program."""
    define = experiment_program.cifar_flags('/tmp/resnet_shortcuts', trains=True)
    text = f'Number of layers that have weights: 6n+2; {PAPER_SIZE}, with --quick {QUICK_SIZE}.'
    define.known('resnet_size', None, text=text, least=8)
    experiment_program.define_list(define, 'rows', ','.join(ROWS), 'Networks to train; all by default.', ROWS)
    absl_flags.register_validator(
        'resnet_size',
        lambda size: size is None or experiment_program.is_depth(size),
        'must be 6n+2: 8, 14, 20, ...',
        define.values,
    )
    return define.values


def run_shortcuts(values: absl_flags.FlagValues) -> None:
    """Train the rows that the flags ask for and write the results."""
    from official_resnet.experiments import runs

    size = values.resnet_size or (QUICK_SIZE if values.quick else PAPER_SIZE)
    rows = {name: row for name, row in ROWS.items() if name in values.rows}

    def conclude(nets) -> dict[str, bool | None]:
        for name, net in nets.items():
            net['paper_error'] = rows[name].paper_error
        return runs.print_claim(judge(nets))

    def drawing(nets, about, path) -> tuple:
        bars = [(row.label, nets[name]['final'], row.paper_error) for name, row in rows.items()]
        titles = (f'ResNet-{size}, {about}', 'ResNet-110, 1603.05027, 64,000 steps, median of 5')
        return 'error_bars', bars, path, titles

    nets = {name: runs.network(size, row.experiment, **row.axes) for name, row in rows.items()}
    runs.run(values, 'shortcuts', 4, nets, conclude, drawing, resnet_size=size)


def judge(nets: dict[str, dict[str, Any]]) -> dict[str, bool | None]:
    """Return whether the test errors show the paper's two conclusions, None where a network is missing or failed."""
    errors = {name: net['final']['test_error'] for name, net in nets.items()}
    original, preactivated = errors.get('original'), errors.get('full_preactivation')
    others = [error for name, error in errors.items() if name not in ('original', *ORDERS)]
    is_best = all(error is None or original < error for error in others) if original is not None and others else None
    is_better = None if original is None or preactivated is None else preactivated < original
    return {'identity_is_the_best_shortcut': is_best, 'full_preactivation_is_better_than_the_original': is_better}


if __name__ == '__main__':
    sys.exit(experiment_program.run_experiment(sys.argv, __doc__, define_flags(), run_shortcuts))
