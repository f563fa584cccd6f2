"""The pictures of experiment.py: how shipped models were trained, what fine-tuning did, what the report explains."""

import math

from pictures.style import BAR, FELL, ROSE, hide_spines, save_figure


def draw_growth(path, decode, score):
    """Write how time and memory grow: decode's with the context, score's with the number of pairs (bench.py's rows)."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(11, 4), layout='constrained')
    panels = (
        (decode, 'context', 'milliseconds', 'tokens in the context', 'milliseconds a token'),
        (decode, 'context', 'cache_mib', 'tokens in the context', 'cache, MiB (by its shape)'),
        (score, 'pairs', 'seconds', 'pairs scored', 'seconds'),
        (score, 'pairs', 'peak_memory_mib', 'pairs scored', 'peak memory, MiB'),
    )
    for axes, (rows, x, y, x_label, y_label) in zip(figure.subplots(1, 4), panels, strict=True):
        axes.plot([row[x] for row in rows], [row[y] for row in rows], color=BAR, marker='o', markersize=3)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_ylim(bottom=0)
        axes.grid(color='#dddddd', linewidth=0.6)
        hide_spines(axes, 'top', 'right')
    save_figure(figure, path)
    pyplot.close(figure)


def draw_training(path, name, curve, iterations_an_epoch):
    """Write the losses of a training run. curve: [{'iter', 'train', 'val'}] in bits per byte."""
    figure, (axes,) = sheet(1, 6.5, 3.8)
    epochs = [row['iter'] / iterations_an_epoch for row in curve]
    for split, meaning, colour in (('train', 'training part', BAR), ('val', 'validation part: whole documents', ROSE)):
        axes.plot(epochs, [row[split] for row in curve], color=colour, marker='o', markersize=3, label=meaning)
    best = min(range(len(curve)), key=lambda place: curve[place]['val'])
    axes.annotate(
        f'{curve[best]["val"]:.3f}', (epochs[best], curve[best]['val']), (0, 9), textcoords='offset points', ha='center'
    )
    worth_seeing = [row for row in curve if row['iter'] >= iterations_an_epoch / 4] or curve
    lowest = min(min(row['train'], row['val']) for row in curve)
    axes.set_ylim(lowest - 0.03, max(row['val'] for row in worth_seeing) + 0.05)
    labelled(axes, f'{name}: epochs of its training part', 'bits per byte')
    axes.legend(frameon=False)
    write_and_close(figure, path)


def draw_sweep(path, by_rate, by_length):
    """Write how the outcome depends on the learning rate and on the length of fine-tuning.

    Both are runs: dicts with `learning_rate`, `epochs`, `texts` (tales, novels: bits per byte as value, low, high) and
    `pairs`, whose last has the mean `logprob` of the responses at the end.
    """
    figure, panels = sheet(4, 10, 6.4, rows=2)
    columns = (
        (list(by_rate), 'learning_rate', 'highest learning rate, for one epoch'),
        (list(by_length), 'epochs', 'epochs'),
    )
    for (runs, key, x_label), bits, pairs in zip(columns, panels[:2], panels[2:]):
        x = [run[key] for run in runs]
        for text, meaning, colour in (('tales', 'stories split off', ROSE), ('novels', 'novels split off', FELL)):
            values, low, high = ([run['texts'][text][name] for run in runs] for name in ('value', 'low', 'high'))
            around = [
                [value - end for value, end in zip(values, low)],
                [end - value for value, end in zip(values, high)],
            ]
            bits.errorbar(x, values, around, color=colour, marker='o', markersize=4, capsize=2, label=meaning)
        pairs.plot(x, [run['pairs'][-1]['logprob'] for run in runs], color=BAR, marker='o', markersize=4)
        for axes, y_label in ((bits, 'bits per byte'), (pairs, 'mean logprob of the responses')):
            axes.set_xscale('log')
            axes.set_xticks(x, [f'{value:.2g}' for value in x])
            axes.minorticks_off()
            labelled(axes, x_label, y_label)
        bits.legend(frameon=False)
    write_and_close(figure, path)


def draw_learning_curve(path, run):
    """Write how loss and pairs went through a fine-tuning run, a dict as for draw_sweep with its `curve`."""
    figure, (left, right) = sheet(2, 10, 3.8)
    for axes, rows, key, colour, label in (
        (left, run['curve'], 'val', ROSE, 'bits per byte of stories split off'),
        (right, run['pairs'], 'logprob', BAR, 'mean logprob of the responses'),
    ):
        epochs = [row['iter'] / run['iterations_an_epoch'] for row in rows]
        axes.plot(epochs, [row[key] for row in rows], color=colour, marker='o', markersize=3)
        labelled(axes, 'epochs', label)
    write_and_close(figure, path)


def draw_length(path, responses):
    """Write what length does to a logprob. responses: [(tokens, logprob)]."""
    figure, (total, per_token) = sheet(2, 10, 4)
    lengths = [tokens for tokens, _ in responses]
    total.scatter(lengths, [logprob for _, logprob in responses], s=14, color=BAR)
    per_token.scatter(lengths, [logprob / tokens for tokens, logprob in responses], s=14, color=ROSE)
    per_token.set_xscale('log', base=2)
    per_token.set_xticks(sorted(set(lengths)), [str(length) for length in sorted(set(lengths))])
    for axes, label in ((total, 'logprob of the response'), (per_token, 'logprob per token')):
        labelled(axes, 'tokens of the response', label)
        axes.set_ylim(top=0)
    write_and_close(figure, path)


def draw_keywords(path, keywords):
    """Write the words that set texts apart. keywords: title -> rows of word, z, here, there.

    z: the log-odds ratio in standard deviations. here, there: occurrences in a million words.
    """
    figure, panels = sheet(len(keywords), 10, 5.6)
    for axes, ((title, rows), colour) in zip(panels, zip(keywords.items(), (ROSE, FELL))):
        places = range(len(rows))
        axes.barh(places, [row['z'] for row in rows], color=colour)
        axes.set_yticks(places, [row['word'] for row in rows])
        axes.invert_yaxis()
        for place, row in zip(places, rows):
            text = f' {row["here"]:,.0f} against {row["there"]:,.0f}'
            axes.text(row['z'], place, text, va='center', fontsize=7, color='#444444')
        axes.set_xlim(right=1.4 * max(row['z'] for row in rows))
        axes.set_title(title, loc='left', fontsize=10)
        labelled(axes, 'log-odds ratio, standard deviations (beside: in a million words)', '')
        axes.grid(visible=False)
    write_and_close(figure, path)


def sheet(panels, width, height, rows=1):
    """Return a figure, so many inches wide and high, and its panels row by row."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(width, height), layout='constrained')
    return figure, list(figure.subplots(rows, math.ceil(panels / rows), squeeze=False).flat)


def labelled(axes, x, y):
    """Say what the axes are, with a grid behind and without a frame."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color='#dddddd', linewidth=0.6)
    axes.set_axisbelow(True)
    hide_spines(axes, 'top', 'right')


def write_and_close(figure, path):
    """Write a figure and forget it."""
    from matplotlib import pyplot

    save_figure(figure, path)
    pyplot.close(figure)
