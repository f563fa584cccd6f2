"""The pictures in results/: how the models were trained, the effect of fine-tuning, the report's figures, growth."""

import math

from pictures.style import BAR, BLUE, GREY, MARK, ORANGE, hide_spines, save_figure


def draw_growth(path, decode, score):
    """Draw how time and memory grow: of decoding with the context, of scoring with the number of pairs.

    decode, score: the rows of bench.py's job growth.
    """
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(11, 4), layout='constrained')
    panels = (
        (decode, 'context', 'milliseconds', 'tokens in the context', 'milliseconds per token'),
        (decode, 'context', 'cache_mib', 'tokens in the context', 'cache, MiB (computed)'),
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
    """Draw the losses of a training run. curve: [{'iter', 'train', 'val'}] in bits per byte."""
    figure, (axes,) = new_panels(1, 6.5, 3.8)
    epochs = [row['iter'] / iterations_an_epoch for row in curve]
    for split, meaning, colour in (('train', 'training part', BAR), ('val', 'validation part: whole documents', BLUE)):
        axes.plot(epochs, [row[split] for row in curve], color=colour, marker='o', markersize=3, label=meaning)
    best = min(range(len(curve)), key=lambda place: curve[place]['val'])
    axes.annotate(
        f'{curve[best]["val"]:.3f}', (epochs[best], curve[best]['val']), (0, 9), textcoords='offset points', ha='center'
    )
    shown = [row for row in curve if row['iter'] >= iterations_an_epoch / 4] or curve
    lowest = min(min(row['train'], row['val']) for row in curve)
    axes.set_ylim(lowest - 0.03, max(row['val'] for row in shown) + 0.05)
    label_axes(axes, f'{name}: epochs of its training part', 'bits per byte')
    axes.legend(frameon=False)
    save_and_close(figure, path)


def draw_sweep(path, by_rate, by_length):
    """Draw how the outcome of fine-tuning depends on the learning rate and on the number of epochs.

    Both are lists of runs: dicts with `learning_rate`, `epochs`, `texts` (simple, heldout: bits per byte as value, low,
    high), `curve` and `pairs`; the first and the last of the pairs have the mean `logprob` of the responses before the
    run and at its end. The course of the last run by length, the longest, is drawn beside the others.
    """
    figure, panels = new_panels(4, 10, 5.4, rows=2)
    by_rate, by_length = list(by_rate), list(by_length)
    columns = (
        (by_rate, 'learning_rate', f'peak learning rate, for {by_rate[0]["epochs"]:.2g} epochs'),
        (by_length, 'epochs', f'epochs, at learning rate {by_length[0]["learning_rate"]:g}'),
    )
    for (runs, key, x_label), bits, pairs in zip(columns, panels[:2], panels[2:]):
        x = [run[key] for run in runs]
        for text, label, colour in (
            ('simple', 'held-out TinyStories', BLUE),
            ('heldout', 'held-out fairy tales', ORANGE),
        ):
            found = [run['texts'][text]['bits_per_byte'] for run in runs]
            values, low, high = ([interval[name] for interval in found] for name in ('value', 'low', 'high'))
            errors = [
                [value - end for value, end in zip(values, low)],
                [end - value for value, end in zip(values, high)],
            ]
            label = label if runs is by_rate else None  # said once
            bits.errorbar(x, values, errors, color=colour, marker='o', markersize=4, capsize=2, label=label)
        pairs.plot(
            x, [run['pairs'][-1]['logprob'] for run in runs], color=BLUE, marker='o', label='at the end of a run'
        )
        pairs.axhline(runs[0]['pairs'][0]['logprob'], color=MARK, linestyle='--', linewidth=1, label='before')
        if runs is by_length:
            draw_course(bits, runs[-1], 'curve', 'val', 'stories, validation part, in the longest run')
            draw_course(pairs, runs[-1], 'pairs', 'logprob', 'in the longest run')
        for axes, y_label in ((bits, 'bits per byte'), (pairs, 'pairs: mean model logprob')):
            axes.set_xscale('log')
            axes.set_xticks(x, [f'{value:.2g}' for value in x])
            axes.minorticks_off()
            label_axes(axes, x_label, y_label)
            axes.legend(frameon=False, fontsize=9)
    save_and_close(figure, path)


def draw_course(axes, run, rows, key, label):
    """Draw how a run went, without its beginning: by epoch, on a logarithmic axis."""
    rows = [row for row in run[rows] if row['iter'] > 0]
    epochs = [row['iter'] / run['iterations_an_epoch'] for row in rows]
    axes.plot(epochs, [row[key] for row in rows], color=GREY, marker='x', label=label, zorder=1)


def draw_learning_curve(path, run):
    """Draw loss and pairs during a fine-tuning run: a dict as in draw_sweep, with its `curve`."""
    figure, (left, right) = new_panels(2, 10, 3.8)
    for axes, rows, key, colour, label in (
        (left, run['curve'], 'val', BLUE, 'bits per byte, stories (validation)'),
        (right, run['pairs'], 'logprob', BAR, 'mean logprob of the responses'),
    ):
        epochs = [row['iter'] / run['iterations_an_epoch'] for row in rows]
        axes.plot(epochs, [row[key] for row in rows], color=colour, marker='o', markersize=3)
        label_axes(axes, 'epochs', label)
    save_and_close(figure, path)


def draw_length(path, responses):
    """Draw how logprobs depend on length. responses: [(tokens, logprob)]."""
    figure, (total, per_token) = new_panels(2, 10, 4)
    lengths = [tokens for tokens, _ in responses]
    total.scatter(lengths, [logprob for _, logprob in responses], s=14, color=BAR)
    per_token.scatter(lengths, [logprob / tokens for tokens, logprob in responses], s=14, color=BLUE)
    per_token.set_xscale('log', base=2)
    per_token.set_xticks(sorted(set(lengths)), [str(length) for length in sorted(set(lengths))])
    for axes, label in ((total, 'model logprob of the beginning'), (per_token, 'model logprob per token')):
        label_axes(axes, 'tokens in the beginning', label)
        axes.set_ylim(top=0)
    save_and_close(figure, path)


def draw_underflow(path, course, underflow):
    """Draw where the product of probabilities becomes zero. course: the logprob of a text after each of its tokens.

    underflow: {precision: dict of `tokens`, after which the product is zero}.
    """
    figure, (axes,) = new_panels(1, 10, 2.2)
    exponents = [logprob / math.log(10) for logprob in course]
    axes.plot(range(1, len(course) + 1), exponents, color=BLUE, label='sum of the logarithms (to base 10)')
    for (precision, found), colour in zip(underflow.items(), (ORANGE, MARK)):
        tokens = found['tokens']
        label = f'product in {precision}: 0.0 from token {tokens} on'
        axes.plot(tokens, exponents[tokens - 1], color=colour, marker='o', linestyle='none', label=label)
        axes.axvline(tokens, color=colour, linewidth=0.8, linestyle=':')
    label_axes(axes, 'tokens of the text', 'log10 of the probability')
    axes.legend(frameon=False, loc='lower left', bbox_to_anchor=(0.2, 0))
    save_and_close(figure, path)


def draw_keywords(path, keywords):
    """Draw the words that set texts apart. keywords: {title: rows of word, z, here, there}.

    z: the log-odds ratio in standard deviations. here, there: occurrences per million words.
    """
    figure, panels = new_panels(len(keywords), 10, 5.6)
    for axes, ((title, rows), colour) in zip(panels, zip(keywords.items(), (BLUE, ORANGE))):
        places = range(len(rows))
        axes.barh(places, [row['z'] for row in rows], color=colour)
        axes.set_yticks(places, [row['word'] for row in rows])
        axes.invert_yaxis()
        for place, row in zip(places, rows):
            text = f' {row["here"]:,.0f} vs. {row["there"]:,.0f}'
            axes.text(row['z'], place, text, va='center', fontsize=9, color='#444444')
        axes.set_xlim(right=1.5 * max(row['z'] for row in rows))
        axes.set_title(title, loc='left', fontsize=10)
        label_axes(axes, 'log-odds ratio, in standard deviations', '')
        axes.grid(visible=False)
    save_and_close(figure, path)


def new_panels(panels, width, height, rows=1):
    """Return a figure and its panels, row by row. width, height: in inches."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(width, height), layout='constrained')
    return figure, list(figure.subplots(rows, math.ceil(panels / rows), squeeze=False).flat)


def label_axes(axes, x, y):
    """Label the axes; draw a grid and no frame."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color='#dddddd', linewidth=0.6)
    axes.set_axisbelow(True)
    hide_spines(axes, 'top', 'right')


def save_and_close(figure, path):
    """Save a figure and free its memory."""
    from matplotlib import pyplot

    save_figure(figure, path)
    pyplot.close(figure)
