"""Sparse dictionaries: find the few directions that everything in the data is made of.

A chord is made of a few of many possible notes. In the same way a vector x, a *signal*, may be made of a few *atoms*,
directions of length 1, each with a weight:

    x ≈ w1 d1 + w2 d2 + ... + ws ds        s of K atoms d; the list of all K is the dictionary

Two questions, one inside the other. If the atoms are known: which are in this signal, with what weights? That is sparse
coding, solved by orthogonal matching pursuit (Pati, Rezaiifar, Krishnaprasad 1993). If only signals are known: what
atoms are they made of? That is dictionary learning, solved by K-SVD (Aharon, Elad, Bruckstein 2006).

    python -m lessons.dictionary         first in the plane, where atoms can be drawn, then in 20 dimensions

What to look for: are the planted atoms found again? There are more of them than dimensions, so they cannot all be at
right angles, as PCA's directions are. How learning gets stuck, one atom between two planted ones while another is idle;
the remaining error shows it, without knowing the planted atoms, if there is little noise. Replacing idle atoms helps.

The vectors inside a language model may be such sums (Elhage et al. 2022, arXiv:2209.10652): see lessons/features.py.
"""

import sys
import warnings
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from matplotlib import pyplot
from numpy import ndarray
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import DictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import orthogonal_mp

import configurator
from common.errors import UserError
from pictures.style import BAR, CHOSEN, GREY, save_figure

FOUND = 0.99  # a planted atom is found if |cosine| is at least this, as in the K-SVD paper: within 8.1 degrees
IDLE = 0.5  # an atom is idle if fewer signals use it than this share of the average
STARTS = 5  # the result depends on the initial atoms, so learning starts several times
POINTS = 500  # signals in the plane
console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)  # a file has no window width


@dataclass
class Settings:
    """Plant atoms, make signals from them, and find the atoms again from the signals alone."""

    plane_atoms: int = 5  # atoms in the plane, where each signal is made of one: two could make any point
    dimensions: int = 20  # of the second experiment, which by default is the K-SVD paper's
    atoms: int = 50  # its number of atoms
    sparsity: int = 3  # atoms in each signal
    signals: int = 1500  # number of signals to learn from
    noise_db: float = 20.0  # signal-to-noise ratio in decibels: at 20 the noise is a tenth as large as the signal
    rounds: int = 50  # of coding all signals and then improving all atoms
    seed: int = 1337  # decides the planted atoms, the signals and the initial atoms
    plot_dir: str = 'results/lessons'  # folder for dictionary.png


# Planting. Shapes: N signals or K atoms, one per row, in C dimensions; s atoms in a signal. ---------------------------


def normalise(rows: Float[ndarray, '... C']) -> Float[ndarray, '... C']:
    """Return rows scaled to length 1."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def plant_atoms(K, C, rng) -> Float[ndarray, 'K C']:
    """Return K random directions, none so near to another (90 / K degrees) that the two look the same."""
    atoms = np.empty((0, C))
    while len(atoms) < K:
        atom = normalise(rng.standard_normal((1, C)))
        if np.abs(atoms @ atom.T).max(initial=0) < np.cos(np.pi / 2 / K):
            atoms = np.concatenate([atoms, atom])
    return atoms


def plant_signals(atoms: Float[ndarray, 'K C'], N, s, noise_db, rng):
    """Return N signals of s atoms each, (N, C), and their codes, (N, K): signals = codes @ atoms + noise."""
    chosen = rng.permuted(np.tile(np.arange(len(atoms)), (N, 1)), axis=1)[:, :s]  # (N, s)
    codes = np.zeros((N, len(atoms)))
    np.put_along_axis(codes, chosen, rng.uniform(-1, 1, (N, s)), axis=1)
    signals, noise = codes @ atoms, rng.standard_normal((N, atoms.shape[1]))
    return signals + noise * np.linalg.norm(signals) / np.linalg.norm(noise) * 10 ** (-noise_db / 20), codes


# Sparse coding: the atoms are known ---------------------------------------------------------------------------------


def code_signals(signals: Float[ndarray, 'N C'], atoms: Float[ndarray, 'K C'], s) -> Float[ndarray, 'N K']:
    """Return codes with s atoms for each signal, found by orthogonal matching pursuit.

    Take the atom most similar to the residual, which at first is the signal; refit the weights of all atoms taken so
    far by least squares; the new residual is what they do not explain, at a right angle to all of them; repeat.
    """
    chosen, residual = np.empty((len(signals), 0), dtype=int), signals
    for _ in range(s):
        similarity = np.abs(residual @ atoms.T)  # (N, K)
        np.put_along_axis(similarity, chosen, -1, axis=1)  # no atom twice, even if the residual is 0
        chosen = np.column_stack([chosen, similarity.argmax(axis=1)])  # (N, 1), then (N, 2), ..., (N, s)
        taken = atoms[chosen]  # (N, 1 to s, C)
        gram = taken @ taken.swapaxes(1, 2) + 1e-13 * np.eye(taken.shape[1])  # not 0 if two atoms are the same
        weights = np.linalg.solve(gram, taken @ signals[:, :, None])  # (N, 1 to s, 1): the least-squares fit
        residual = signals - (weights * taken).sum(axis=1)
    codes = np.zeros((len(signals), len(atoms)))
    np.put_along_axis(codes, chosen, weights[..., 0], axis=1)
    return codes


# Dictionary learning: the atoms are unknown -------------------------------------------------------------------------


def improve_atoms(signals: Float[ndarray, 'N C'], atoms: Float[ndarray, 'K C'], codes: Float[ndarray, 'N K']):
    """Return better atoms and codes: each atom in turn is fitted to the signals that use it, with its weights there.

    The target is what all other atoms leave of these signals. The one direction, with a weight for each signal, that
    comes closest to it is the first component of its singular value decomposition: hence the name.
    """
    atoms, codes = atoms.copy(), codes.copy()
    for k in range(len(atoms)):
        users = codes[:, k].nonzero()[0]
        if len(users):
            codes[users, k] = 0
            target = signals[users] - codes[users] @ atoms  # (users, C)
            weights, sizes, directions = np.linalg.svd(target, full_matrices=False)
            atoms[k], codes[users, k] = directions[0], weights[:, 0] * sizes[0]
    return atoms, codes


def replace_idle_atoms(signals: Float[ndarray, 'N C'], atoms: Float[ndarray, 'K C'], codes: Float[ndarray, 'N K']):
    """Return atoms in which the useless ones are replaced by the signals with the largest errors.

    An atom that hardly any signal uses is fitted to almost nothing and would stay where it is forever. Of two atoms
    that point the same way, one is idle too. And the largest errors show where an atom is missing.
    """
    atoms, errors = atoms.copy(), ((signals - codes @ atoms) ** 2).sum(axis=1)
    users = (codes != 0).sum(axis=0)  # (K,)
    for k in range(len(atoms)):
        duplicate, worst = np.abs(atoms[:k] @ atoms[k]).max(initial=0) > FOUND, errors.argmax()
        if (duplicate or users[k] < IDLE * users.mean()) and errors[worst] > 0:
            atoms[k], errors[worst] = normalise(signals[worst]), 0
    return atoms


def learn_atoms(signals: Float[ndarray, 'N C'], K, s, rng, replacing=True):
    """Yield (atoms, codes) after 0, 1, 2, ... rounds of K-SVD, without end. The initial atoms are K of the signals."""
    atoms = normalise(rng.choice(signals, K, replace=False))
    while True:
        codes = code_signals(signals, atoms, s)
        yield atoms, codes
        atoms, codes = improve_atoms(signals, atoms, codes)
        atoms = replace_idle_atoms(signals, atoms, codes) if replacing else atoms


def relative_error(signals: Float[ndarray, 'N C'], atoms: Float[ndarray, 'K C'], codes: Float[ndarray, 'N K']):
    """Return the size of the residual over that of the signals: 0.1 for noise of 20 dB, less what atoms fit of it."""
    return np.linalg.norm(signals - codes @ atoms) / np.linalg.norm(signals)


def learn_from_starts(signals: Float[ndarray, 'N C'], K, s, rounds, rng, replacing=True):
    """Return (atoms, codes) round by round, a list for each start, the start with the smallest final error first."""
    runs = [list(islice(learn_atoms(signals, K, s, rng, replacing), rounds + 1)) for _ in range(STARTS)]
    return sorted(runs, key=lambda run: relative_error(signals, *run[-1]))


def are_found(planted: Float[ndarray, 'K C'], atoms: Float[ndarray, 'L C']) -> Bool[ndarray, ' K']:
    """Return which planted atoms are among the learned ones; signs and order do not matter."""
    return np.abs(planted @ atoms.T).max(axis=1) >= FOUND


def learn_with_sklearn(signals: Float[ndarray, 'N C'], K, seed) -> Float[ndarray, 'K C']:
    """Return scikit-learn's atoms; it penalises the sizes of weights (L1) instead of counting them."""
    warnings.filterwarnings('ignore', category=ConvergenceWarning)  # it could still improve a little
    learned = DictionaryLearning(K, alpha=0.2, max_iter=200, fit_algorithm='cd', random_state=seed).fit(signals)
    return normalise(learned.components_ + 1e-12)  # an atom that is never used is 0


# The lesson ---------------------------------------------------------------------------------------------------------


def main(settings):
    """Code signals with known atoms; find unknown ones, in the plane and in more dimensions; print and draw."""
    K, C, s = settings.atoms, settings.dimensions, settings.sparsity
    limits = {'plane_atoms': (2, 9), 'sparsity': (1, C), 'atoms': (max(s, 2), 1000), 'signals': (K, 100_000)}
    for name, (low, high) in {'dimensions': (2, 200), **limits, 'noise_db': (0, 200), 'rounds': (1, 1000)}.items():
        if not low <= getattr(settings, name) <= high:
            raise UserError(f'--{name}={getattr(settings, name)}: it must be {low} to {high}')
    rng, usual, drawn = np.random.default_rng(settings.seed), settings.noise_db, []
    plane, space = plant_atoms(settings.plane_atoms, 2, rng), plant_atoms(K, C, rng)
    print_coding(space, *plant_signals(space, settings.signals, s, usual, rng))

    table = Table('atoms', 'noise, dB', 'idle atoms', f'found, by {STARTS} starts', 'error left', 'scikit-learn')
    table.title = 'Share of planted atoms that are found; the start with the smallest error first'
    runs = [(plane, usual, False), (plane, usual, True), (space, usual, False), (space, usual, True), (space, 10, True)]
    for planted, noise_db, replacing in runs:
        rng = np.random.default_rng(settings.seed)  # the same signals and starts, whether atoms are replaced or not
        N, sparsity = (POINTS, 1) if planted is plane else (settings.signals, s)
        signals, _ = plant_signals(planted, N, sparsity, noise_db, rng)
        starts = learn_from_starts(signals, len(planted), sparsity, settings.rounds, rng, replacing)
        shares = ' '.join(f'{are_found(planted, start[-1][0]).mean():.2f}' for start in starts)
        least, most = (f'{relative_error(signals, *start[-1]):.2f}' for start in (starts[0], starts[-1]))
        if not replacing or noise_db != usual:  # otherwise these signals are those of the row before
            reference = are_found(planted, learn_with_sklearn(signals, len(planted), settings.seed)).mean()
        cells = f'{len(planted)} in {planted.shape[1]}-D', f'{noise_db:g}', 'replaced' if replacing else 'kept'
        table.add_row(*cells, shares, f'{least} to {most}', f'{reference:.2f}')
        drawn.append((f'idle atoms {cells[-1]}: the worst of {STARTS} starts, error {most}', starts[-1]))
        if len(drawn) == 2:
            draw_atoms(Path(settings.plot_dir) / 'dictionary.png', signals, planted, *drawn)
    console.print(table)


def print_coding(atoms, signals, planted):
    """Print how well pursuit works, that scikit-learn agrees, and what happens if all atoms are taken at once."""
    s, similarity = np.count_nonzero(planted[0]), np.abs(signals @ atoms.T)
    errors = [f'{relative_error(signals, atoms, code_signals(signals, atoms, n)):.2f}' for n in range(1, s + 1)]
    console.print(f'Error left in {len(signals):,} signals after pursuing 1 to {s} atoms: {", ".join(errors)}.')
    codes = code_signals(signals, atoms, s)
    reference = orthogonal_mp(atoms.T, signals.T, n_nonzero_coefs=s).reshape(len(atoms), -1).T
    console.print(f"Largest difference from scikit-learn's pursuit: {np.abs(codes - reference).max():.0e}.")
    at_once = similarity >= np.sort(similarity)[:, [-s]]  # the s atoms most similar to the signal itself
    right = [((code != 0) == (planted != 0)).all(axis=1).mean() for code in (codes, at_once)]
    console.print(f'All {s} atoms right: {right[0]:.0%} of signals; if taken at once, {right[1]:.0%}.\n')


def draw_atoms(path, signals, planted, kept, replaced):
    """Draw atoms among points, and their angles round by round; kept, replaced: (title, rounds of a start) each."""
    figure, axes = pyplot.subplot_mosaic('aabbcc;dddeee', figsize=(11, 7.5), layout='constrained')
    for panel, rounds, title in (('a', 0, 'start: some of the points'), ('b', 1, 'one round'), ('c', -1, 'found')):
        axes[panel].scatter(*signals.T, s=5, color=BAR)
        for atom in planted:
            axes[panel].axline((0, 0), atom, color=GREY, linewidth=5, zorder=0)
        for atom in replaced[1][rounds][0]:
            axes[panel].plot(*np.outer(atom, (-1.15, 1.15)), color=CHOSEN)
        axes[panel].set(title=title, aspect='equal', xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
    for panel, (title, rounds) in (('d', replaced), ('e', kept)):
        atoms = np.array([planted] + [atoms for atoms, _ in rounds[:21]])
        degrees = np.degrees(np.arctan2(atoms[..., 1], atoms[..., 0])) % 180  # a direction and its opposite are one
        axes[panel].hlines(degrees[0], 0, 20, GREY, linewidth=5)
        axes[panel].plot(degrees[1:], 'o', color=CHOSEN, markersize=4)
        axes[panel].set(title=title, xticks=range(0, 21, 5), yticks=range(0, 181, 30), ylim=(0, 181), xlabel='rounds')
    axes['d'].set_ylabel('angles of atoms in degrees\n(grey: planted, orange: learned)')
    save_figure(figure, path)
    pyplot.close(figure)


if __name__ == '__main__':
    configurator.run(main, Settings)
