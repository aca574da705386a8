"""Show the degradation problem: plain against residual networks on CIFAR-10, 1512.03385 Fig. 1 and 6.

    python degradation_main.py --data_dir ~ --quick     # plain and residual, 20 and 56 layers: minutes on two cores
    python degradation_main.py --data_dir ~ --train_epochs=10 --batch_size=64 \\
        --warmup_epochs=0.5 --runs=2
    python degradation_main.py --data_dir ~             # the paper's 64,000 steps each: not yet run

On two cores of an AMD EPYC with AVX-512, as two processes in bfloat16, the figure took 84 minutes (n = 2). Training
and test error: plain-20 21.2 and 23.4 %, plain-56 53.2 and 53.5 %, residual-20 18.3 and 20.8 %, residual-56 16.9 and
19.9 %.

A plain network of 56 layers has a higher *training* error than one of 20, so the cause is not overfitting: the network
is harder to optimise. With shortcuts (option A, which adds no parameters), 56 layers are better than 20. --quick, with
the first 10,000 training images and 6 epochs, is too short to show the latter. The learning rate drops after half and
three quarters of the epochs. As in the paper, networks of 110 layers or more begin with about an epoch at a tenth of
the learning rate. If the program is stopped, run the same command again to continue; finished networks are kept. See
docs/experiments.md and docs/results.md for the figure and the numbers.
--runs repeats each network with other seeds; the figure then shows means, and a depth counts as worse or better only if
it is in every run. --filters=8 makes the networks narrower, which does not make them faster in bfloat16.
--output_dir receives degradation.png and degradation.json (curves, final errors, and whether the claim holds).
"""

import statistics
import sys
from typing import Any

try:
    from absl import flags as absl_flags

    from official_resnet.experiments import experiment_program
except ModuleNotFoundError as error:  # run by its path, without an installation
    sys.exit(f"{error}; run 'pip install .' in the folder of the repository")

KINDS = {'plain': None, 'residual': 'A'}  # kind of network -> its shortcut


def define_flags() -> absl_flags.FlagValues:
    """Return the flags of this program."""
    define = experiment_program.cifar_flags('/tmp/resnet_degradation', trains=True)
    define.integer('runs', 1, 'Number of runs of each network; run i has seed --seed + i.', lower=1)
    define.integer('filters', 16, 'Filters of the first group of residual blocks.', lower=1)
    define.known('warmup_epochs', 0.0)
    experiment_program.define_list(define, 'depths', '20,56', 'Numbers of layers of the networks, each 6n+2.')
    return define.values


def run_degradation(values: absl_flags.FlagValues) -> None:
    """Train the networks that the flags ask for, judge the claim, and write the results."""
    from official_resnet.experiments import runs

    depths = sorted(set(map(int, values.depths)))
    nets = {
        name_of(kind, depth, run): runs.network(depth, shortcut=shortcut, filters=values.filters)
        | {'seed': values.seed + run}
        for run in range(values.runs)  # so that the first run of each network comes first
        for kind, shortcut in KINDS.items()
        for depth in depths
    }

    def conclude(nets) -> dict[str, Any] | None:
        if len(depths) == 1:
            return None
        claim = judge(nets, depths[0], depths[-1], values.runs)
        print(claim['text'])
        return claim

    def drawing(nets, about, path) -> tuple:
        panels = {
            f'{kind} networks': {f'{n} layers': mean_curves(nets, kind, n, values.runs) for n in depths}
            for kind in KINDS
        }
        return 'error_curves', panels, path, f'Plain against residual networks: {about}'

    runs.run(values, 'degradation', 6, nets, conclude, drawing, filters=values.filters)


def name_of(kind: str, depth: int, run: int) -> str:
    """Return the name of a network, for example plain-20, or plain-20-run2 for the second run."""
    return f'{kind}-{depth}' + (f'-run{run + 1}' if run else '')


def mean_curves(nets: dict[str, dict[str, Any]], kind: str, depth: int, num_runs: int) -> dict[str, list[float]]:
    """Return the curves of a network, each value the mean of its runs. A run that failed ends all of them."""
    curves = [nets[name_of(kind, depth, run)]['curves'] for run in range(num_runs)]
    return {
        key: [statistics.fmean(values) for values in zip(*(one[key] for one in curves), strict=False)]
        for key in curves[0]
    }


def judge(nets: dict[str, dict[str, Any]], shallow: int, deep: int, num_runs: int = 1) -> dict[str, Any]:
    """Return what the final errors of two depths say: {'text', 'plain', 'residual'}.

    It compares test errors, and train_error_inference, the error of the final weights on training images that are not
    augmented. (The training error in the curves is an average over an epoch, while the weights change.) With several
    runs the deep network is worse or better if it is in each of them; otherwise it is neither. `nets` is
    {'plain-20': result of runs.train_net, ...}.
    """
    claim: dict[str, Any] = {kind: {'depths': [shallow, deep]} for kind in KINDS}
    sentences = []
    for kind in KINDS:
        for error, name in (('train_error_inference', 'training error'), ('test_error', 'test error')):
            pairs = [
                [nets[name_of(kind, depth, run)]['final'][error] for depth in (shallow, deep)]
                for run in range(num_runs)
            ]
            claim[kind][error] = pairs
            columns = list(zip(*pairs, strict=True))
            texts = ['failed' if None in errors else f'{statistics.fmean(errors):.2f} %' for errors in columns]
            signs = {None if None in pair else (pair[1] > pair[0]) - (pair[1] < pair[0]) for pair in pairs}
            sign = signs.pop() if len(signs) == 1 else 0
            verdict = {1: 'worse', -1: 'better', 0: 'neither worse nor better', None: 'not compared'}[sign]
            claim[kind][f'deep_is_{error}'] = verdict
            sentences.append(f'{name}, {kind}: {shallow} layers {texts[0]}, {deep} layers {texts[1]} ({verdict})')
    return claim | {'text': '\n'.join(sentences)}


if __name__ == '__main__':
    sys.exit(experiment_program.run_experiment(sys.argv, __doc__, define_flags(), run_degradation))
