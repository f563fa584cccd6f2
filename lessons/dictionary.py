"""Sparse dictionaries: find the few directions that everything seen is made of.

A chord is made of a few notes, out of many that there are. So may a vector x, a *signal*, be made of a few *atoms*,
directions of length 1, each times a weight:

    x ≈ w1 d1 + w2 d2 + ... + ws ds        s of K atoms d; the list of all K is the dictionary

Two questions, one inside the other. If the atoms are known: which of them are in this signal, and how much of each?
That is sparse coding; orthogonal matching pursuit does it (Pati, Rezaiifar, Krishnaprasad 1993). If only signals are
known: which atoms are they made of? That is dictionary learning; K-SVD does it (Aharon, Elad, Bruckstein 2006).

    python -m lessons.dictionary         first in the plane, where atoms can be drawn, then in 20 dimensions

What to look for: whether the atoms that we plant, hide and look for are found again. There are more of them than
dimensions, so they are not all at right angles, as PCA's directions are. How learning gets stuck, one atom between two
planted ones while another idles; that the error left shows it, with no planted atoms; what replacing idle ones does.

A language model's vector of a token may be a sum of few directions with a meaning, of which there are more than
dimensions (Elhage et al. 2022, arXiv:2209.10652): lessons/features.py looks for them.
"""

import sys
import warnings
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import DictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import orthogonal_mp

import configurator
from common.errors import UserError
from pictures.style import BAR, CHOSEN, GIVEN_UP, save_figure

FOUND = 0.99  # |cosine| from which on a planted atom counts as found, as in the K-SVD paper: within 8.1 degrees
IDLE = 0.5  # an atom that fewer signals use than half of the average atom is idle
STARTS = 5  # where learning begins decides where it ends, so it begins several times
POINTS = 500  # signals in the plane
console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)  # in a file there is no window to fit


@dataclass
class Settings:
    """Plant atoms, make signals of them, and find the atoms again from the signals alone."""

    plane_atoms: int = 5  # atoms in the plane, where each signal is made of one: two could make any point
    dimensions: int = 20  # of the second experiment, that of the K-SVD paper unless told otherwise
    atoms: int = 50  # its atoms
    sparsity: int = 3  # how many of them each signal is made of
    signals: int = 1500  # how many signals there are to learn from
    noise_db: float = 20.0  # signal to noise in decibels: at 20 the noise is a tenth as large as the signal
    rounds: int = 50  # of coding all signals and then improving all atoms
    seed: int = 1337  # decides what is planted, and where learning starts
    plot_dir: str = 'results/lessons'  # where dictionary.png goes


# Planting. Shapes: N signals or K atoms, one a row, in C dimensions; s atoms a signal. ------------------------------


def unit(rows):
    """Return rows scaled to length 1."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def plant_atoms(K, C, rng):
    """Draw K directions, (K, C), none so near to another (90 / K degrees) that the two could not be told apart."""
    atoms = np.empty((0, C))
    while len(atoms) < K:
        atom = unit(rng.standard_normal((1, C)))
        if np.abs(atoms @ atom.T).max(initial=0) < np.cos(np.pi / 2 / K):
            atoms = np.concatenate([atoms, atom])
    return atoms


def plant_signals(atoms, N, s, noise_db, rng):
    """Make N signals of s atoms each; return them, (N, C), and their codes, (N, K): signals = codes @ atoms + noise."""
    chosen = rng.permuted(np.tile(np.arange(len(atoms)), (N, 1)), axis=1)[:, :s]  # (N, s)
    codes = np.zeros((N, len(atoms)))
    np.put_along_axis(codes, chosen, rng.uniform(-1, 1, (N, s)), axis=1)
    signals = codes @ atoms
    noise = rng.standard_normal(signals.shape)
    return signals + noise * np.linalg.norm(signals) / np.linalg.norm(noise) * 10 ** (-noise_db / 20), codes


# Sparse coding: the atoms are known ---------------------------------------------------------------------------------


def pursue(signals, atoms, s):
    """Code each signal with s atoms by orthogonal matching pursuit; return the codes, (N, K).

    Take the atom most alike to what is left of the signal; fit the weights of all atoms taken so far anew, by least
    squares; what they do not explain is left, at a right angle to them all; and again.
    """
    chosen, left = np.empty((len(signals), 0), dtype=int), signals
    for _ in range(s):
        alike = np.abs(left @ atoms.T)  # (N, K)
        np.put_along_axis(alike, chosen, -1, axis=1)  # no atom twice, not even where nothing is left
        chosen = np.column_stack([chosen, alike.argmax(axis=1)])  # (N, 1), then (N, 2), ..., (N, s)
        taken = atoms[chosen]  # (N, 1 to s, C)
        weights = signals[:, None] @ np.linalg.pinv(taken)  # (N, 1, 1 to s): the least-squares fit
        left = signals - (weights @ taken)[:, 0]  # (N, C)
    codes = np.zeros((len(signals), len(atoms)))
    np.put_along_axis(codes, chosen, weights[:, 0], axis=1)
    return codes


# Dictionary learning: they are not ----------------------------------------------------------------------------------


def improve(signals, atoms, codes):
    """Return better atoms and codes: each atom in turn is fitted to the signals that use it, with its weights there.

    What these signals need of the atom is all that the other atoms leave of them. The one direction, with a weight for
    each signal, that comes nearest to that is the first part of its singular value decomposition: hence the name.
    """
    atoms, codes = atoms.copy(), codes.copy()
    for k in range(len(atoms)):
        users = codes[:, k].nonzero()[0]
        if len(users):
            codes[users, k] = 0
            needed = signals[users] - codes[users] @ atoms  # (users, C)
            weights, sizes, directions = np.linalg.svd(needed, full_matrices=False)
            atoms[k], codes[users, k] = directions[0], weights[:, 0] * sizes[0]
    return atoms, codes


def replace(signals, atoms, codes):
    """Return atoms of which those that do no work have become the signals that are explained worst.

    An atom that hardly any signal uses is fitted to next to nothing, and would stay where it is for ever. Of two that
    have come to point the same way, one is as idle. And the worst signals show where an atom is missing.
    """
    atoms, errors = atoms.copy(), ((signals - codes @ atoms) ** 2).sum(axis=1)
    users = (codes != 0).sum(axis=0)  # (K,)
    for k in range(len(atoms)):
        double = np.abs(atoms[:k] @ atoms[k]).max(initial=0) > FOUND
        worst = errors.argmax()
        if (double or users[k] < IDLE * users.mean()) and errors[worst] > 0:
            atoms[k], errors[worst] = unit(signals[worst]), 0
    return atoms


def learn(signals, K, s, rng, replacing=True):
    """Yield (atoms, codes) after 0, 1, 2, ... rounds of K-SVD, for ever. The first atoms are K of the signals."""
    atoms = unit(rng.choice(signals, K, replace=False))
    while True:
        codes = pursue(signals, atoms, s)
        yield atoms, codes
        atoms, codes = improve(signals, atoms, codes)
        if replacing:
            atoms = replace(signals, atoms, codes)


def error(signals, atoms, codes):
    """Return the size of what is left, over that of the signals: 0.1 for noise of 20 dB, less what atoms fit of it."""
    return np.linalg.norm(signals - codes @ atoms) / np.linalg.norm(signals)


def learn_from_starts(signals, K, s, rounds, rng, replacing=True):
    """Return what each start came to, round by round: lists of (atoms, codes), that with the least error first."""
    ways = [list(islice(learn(signals, K, s, rng, replacing), rounds + 1)) for _ in range(STARTS)]
    return sorted(ways, key=lambda way: error(signals, *way[-1]))


def found(planted, atoms):
    """Return which planted atoms are among the atoms, (K,) of bool; signs and order do not matter."""
    return np.abs(planted @ atoms.T).max(axis=1) >= FOUND


def learn_with_sklearn(signals, K, seed):
    """Return scikit-learn's atoms, (K, C): it charges for the sizes of weights (L1) instead of counting them."""
    warnings.filterwarnings('ignore', category=ConvergenceWarning)  # it could still improve a little
    learned = DictionaryLearning(K, alpha=0.2, max_iter=200, fit_algorithm='cd', random_state=seed).fit(signals)
    return unit(learned.components_ + 1e-12)  # an atom that is never used is 0


# The lesson ---------------------------------------------------------------------------------------------------------


def main(settings):
    """Code signals with known atoms; find unknown ones, in the plane and in more dimensions; print and draw it."""
    K, C, s = settings.atoms, settings.dimensions, settings.sparsity
    limits = {'plane_atoms': (2, 9), 'sparsity': (1, C), 'atoms': (max(s, 2), 1000), 'signals': (K, 100_000)}
    for name, (low, high) in {'dimensions': (2, 200), **limits, 'noise_db': (0, 200), 'rounds': (1, 1000)}.items():
        if not low <= getattr(settings, name) <= high:
            raise UserError(f'--{name}={getattr(settings, name)}: it is {low} to {high}')
    rng, here, drawn = np.random.default_rng(settings.seed), settings.noise_db, []
    plane, space = plant_atoms(settings.plane_atoms, 2, rng), plant_atoms(K, C, rng)
    tell_of_coding(space, *plant_signals(space, settings.signals, s, here, rng))

    table = Table('atoms', 'noise, dB', 'idle atoms', f'found, by {STARTS} starts', 'error left', 'scikit-learn')
    table.title = 'Share of the planted atoms that is found again; the start that leaves the least error first'
    runs = [(plane, here, False), (plane, here, True), (space, here, False), (space, here, True), (space, 10, True)]
    for planted, noise_db, replacing in runs:
        rng = np.random.default_rng(settings.seed)  # the same signals and starts, whether atoms are replaced or not
        N, sparsity = (POINTS, 1) if planted is plane else (settings.signals, s)
        signals, _ = plant_signals(planted, N, sparsity, noise_db, rng)
        ways = learn_from_starts(signals, len(planted), sparsity, settings.rounds, rng, replacing)
        each = ' '.join(f'{found(planted, way[-1][0]).mean():.2f}' for way in ways)
        least, most = (f'{error(signals, *way[-1]):.2f}' for way in (ways[0], ways[-1]))
        reference = found(planted, learn_with_sklearn(signals, len(planted), settings.seed)).mean()
        cells = f'{len(planted)} in {planted.shape[1]}-D', f'{noise_db:g}', 'replaced' if replacing else 'kept'
        table.add_row(*cells, each, f'{least} to {most}', f'{reference:.2f}')
        drawn.append((f'idle atoms {cells[-1]}: the worst of {STARTS} starts, error {most}', ways[-1]))
        if len(drawn) == 2:
            draw(Path(settings.plot_dir) / 'dictionary.png', signals, planted, *drawn)
    console.print(table)


def tell_of_coding(atoms, signals, planted):
    """Print how signals are pursued, that scikit-learn agrees, and what becomes of taking all atoms at one look."""
    s, alike = np.count_nonzero(planted[0]), np.abs(signals @ atoms.T)
    errors = [f'{error(signals, atoms, pursue(signals, atoms, taken)):.2f}' for taken in range(1, s + 1)]
    console.print(f'Error left of {len(signals):,} signals with 1 to {s} atoms pursued: {", ".join(errors)}.')
    codes = pursue(signals, atoms, s)
    reference = orthogonal_mp(atoms.T, signals.T, n_nonzero_coefs=s).reshape(len(atoms), -1).T
    console.print(f"Largest difference from scikit-learn's pursuit: {np.abs(codes - reference).max():.0e}.")
    one_look = alike >= np.sort(alike)[:, [-s]]  # the s atoms most alike to the signal itself
    right = [((code != 0) == (planted != 0)).all(axis=1).mean() for code in (codes, one_look)]
    console.print(f'All {s} atoms right: {right[0]:.0%} of signals; if taken at one look, {right[1]:.0%}.\n')


def draw(path, signals, planted, without, replaced):
    """Draw atoms among points, and the angles of atoms round by round; the last two are (title, way of a start)."""
    figure, axes = pyplot.subplot_mosaic('aabbcc;dddeee', figsize=(11, 7.5), layout='constrained')
    for place, rounds, title in (('a', 0, 'the start: some of the points'), ('b', 1, 'one round'), ('c', -1, 'found')):
        axes[place].scatter(*signals.T, s=5, color=BAR)
        for atom in planted:
            axes[place].axline((0, 0), atom, color=GIVEN_UP, linewidth=5, zorder=0)
        for atom in replaced[1][rounds][0]:
            axes[place].plot(*np.outer(atom, (-1.15, 1.15)), color=CHOSEN)
        axes[place].set(title=title, aspect='equal', xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
    for place, (title, way) in (('d', replaced), ('e', without)):
        atoms = np.array([planted] + [atoms for atoms, _ in way[:21]])
        degrees = np.degrees(np.arctan2(atoms[..., 1], atoms[..., 0])) % 180  # a direction and its opposite are one
        axes[place].hlines(degrees[0], 0, 20, GIVEN_UP, linewidth=5)
        axes[place].plot(degrees[1:], 'o', color=CHOSEN, markersize=4)
        axes[place].set(title=title, xticks=range(0, 21, 5), yticks=range(0, 181, 30), ylim=(0, 181), xlabel='rounds')
    axes['d'].set_ylabel('angles of atoms in degrees\n(grey: planted, orange: learned)')
    save_figure(figure, path)
    pyplot.close(figure)


if __name__ == '__main__':
    configurator.run(main, Settings)
