"""The Markdown pages of what experiment.py found: how the shipped models were chosen, and what fine-tuning did."""

import re

from evaluation.markdown import markdown_table
from evaluation.sentences import comparison_sentences, format_interval

TEXTS = {
    'heldout': 'fairy tales that no model saw',
    'tales': 'stories split off',
    'novels': 'novels split off',
}
KINDS = {'plain': 'plain prose, no story at all'}
PUBLISHED = """Sampler probabilities (temperature 0.8, no top-k) that an earlier project published of the 124M `gpt2`,
before and after fine-tuning it on children's stories, prompt and response encoded apart:

| prompt | response | `gpt2` | fine-tuned |
| --- | --- | ---: | ---: |
| `Once upon a time ` | there was a king | 4.31e-11 | 7.72e-08 |
| `Long, long ago ` | two boys lived in a village | 3.78e-16 | 8.38e-14 |
| `she was so pretty that they thought ` | she must be some fairy princess | 8.84e-16 | 1.64e-11 |

They were **not run here**, where GPT-2's weights could not be fetched. Where they can be had,

```bash
python eval.py --init_from=gpt2 --temperature=0.8 --boundary=separate \\
    --start="Once upon a time " --fixed_response="there was a king"
python -m pytest -m network
```

repeat the first row's `gpt2`, and compare all of that column with what is computed here."""


# How the models were chosen -----------------------------------------------------------------------------------------


def models_page(common, search, shipped):
    """Return the page of how the shipped models were chosen and trained.

    common: the settings of the short runs of the search. search: name -> run, with what was `varied` in it. shipped:
    name -> (config file, run, with its `best` evaluation and its `alternatives`), as far as they are done.
    """
    parts = [
        '# How the shipped models were chosen and trained',
        'All choices were made by bits per byte on whole documents that were split off from the training texts (4 % of '
        'them). `fairytales_heldout.txt` was not looked at. Losses are over blocks of one context, in bfloat16.',
        '## Short runs',
        'One thing varied at a time, for one epoch of the novels, judged at its end. Common to all, unless varied: '
        f'`{" ".join(f"--{key}={value}" for key, value in common.items())}`.',
        runs_table(search.values()),
        'An epoch is soon over, and favours what learns fast: a larger vocabulary, fewer layers, smaller batches, a '
        'higher learning rate. The shipped models take the first three together, which was not tried by itself; part '
        "of the smaller batch's gain is that it takes twice the steps. The higher learning rate was not tried with it. "
        '(The documents split off from the novels happen to be easier than the rest, hence less on them than on the '
        'training part.)',
    ]
    for name, (config, of) in shipped.items():
        parts += [
            f'## {name}',
            f'`python train.py {config}` in full, and what was tried beside it. The weights that are shipped are those '
            f'of iteration {of["best"]["iter"]:,}, the best on the validation part: {of["best"]["val"]:.4f} bits per '
            'byte.',
            runs_table([{'varied': {}, **of}, *of['alternatives'].values()]),
            f'![Losses of {name}](../../models/{name}/training.png)',
        ]
    parts.append(
        'How the outcome depends on the learning rate and on the number of epochs of fine-tuning is in '
        '[fine_tuning](../fine_tuning/README.md); dropout was tried in full with `tiny` only.'
    )
    parts += ['## Again', '```bash\npython -m lab.experiment --part=search,tiny,tiny-stories --corpora=texts\n```']
    return '\n\n'.join(parts)


def runs_table(runs):
    """Return a Markdown table of training runs."""
    rows = [['varied', 'million parameters', 'epochs', 'bits/byte: training part', 'validation part', 'its best']]
    for run in runs:
        varied = ', '.join(f'`{key}={value}`' for key, value in run['varied'].items()) or '(the settings as they are)'
        best = min(row['val'] for row in run['curve'])
        sizes = f'{run["parameters"] / 1e6:.2f}', f'{run["epochs"]:.1f}'
        rows.append([varied, *sizes, f'{run["train"]:.4f}', f'{run["val"]:.4f}', f'{best:.4f}'])
    return markdown_table(rows)


# What fine-tuning did -----------------------------------------------------------------------------------------------


def fine_tuning_page(pairs, kinds, texts, samples, sweep):
    """Return the page of what fine-tuning did. pairs: eval.py's summary; the others as experiment.py keeps them."""
    return '\n\n'.join(
        [
            '# What fine-tuning on stories did',
            "`tiny` was trained on novels, `tiny-stories` is `tiny` after children's stories and fairy tales "
            '([how they were chosen and trained](../models/README.md)). This page is made by',
            '```bash\npython -m lab.experiment --part=fine_tuning --corpora=texts\n```',
            '## The pairs',
            ' '.join(comparison_sentences(pairs)),
            kinds_table(kinds),
            'Every response, every measure with its interval: [pairs/report.md](pairs/report.md).',
            '![Each response before and after](pairs/before_after.png)',
            '## What was gained, what was forgotten',
            texts_table(texts),
            'Running text, every token scored once, behind half a context of text at least; 95 % bootstrap intervals '
            'over segments. The first row is text that nothing was trained on or chosen by. Stories and novels were '
            'split off from the training texts in whole documents: `python eval.py --init_from=tiny-stories '
            '--compare_to=tiny --text=tales`.',
            '## Multiple choice',
            choices_sentences(pairs['multiple_choice']),
            '## The same seeds, before and after',
            samples_part(samples),
            '## How it depends on the learning rate, and on how long',
            '![Learning rate and length](sweep.png)',
            sweep_table(sweep),
            'Each row is a run of its own from `tiny`, its learning rate falling to 0 along a cosine, the rest as in '
            '`config/finetune_tiny_stories.py`. The pairs are the mean logprob of the 64 responses at its end. Every '
            'token of these texts is behind half a context of text, so the figures are lower than those of '
            '[models](../models/README.md).',
            '## As it learns',
            '![Loss and pairs through fine-tuning](learning_curve.png)',
            '## GPT-2 itself',
            PUBLISHED,
        ]
    )


def kinds_table(kinds):
    """Return how the pairs of each kind changed, as Markdown."""
    rows = [['pairs about', 'pairs', 'likelier', 'mean log-ratio']]
    for kind, of in kinds.items():
        rows.append([KINDS.get(kind, kind), str(of['pairs']), str(of['rose']), f'{of["mean_log_ratio"]:+.2f}'])
    return markdown_table(rows)


def texts_table(texts):
    """Return bits per byte and perplexity of each text before and after, as Markdown."""
    rows = [['text', 'bytes', 'bits per byte before', 'after', 'perplexity per token before', 'after']]
    for name, of in texts.items():
        cells = [
            format_interval(of[side][measure], form)
            for measure, form in (('bits_per_byte', '{:.3f}'), ('perplexity', '{:.1f}'))
            for side in ('compare_to', 'model')
        ]
        rows.append([TEXTS[name], f'{of["bytes"]:,}', *cells])
    return markdown_table(rows)


def choices_sentences(choices):
    """Say how often each model preferred the right response, and what guessing would get."""
    before, after = (format_interval(choices[side]['acc'], '{:.1%}') for side in ('compare_to', 'model'))
    return (
        f'Of {choices["questions"]} questions with one right response and three wrong ones, guessing gets 25 %. `tiny` '
        f'prefers the right one in {before}, `tiny-stories` in {after}. The wrong responses were written to be plain '
        'sense word by word and wrong only in their place.'
    )


def samples_part(samples):
    """Return what both models wrote from the same seeds, as Markdown."""
    parts = []
    for prompt, of_tiny in samples['tiny'].items():
        for before, after in zip(of_tiny, samples['tiny-stories'][prompt]):
            rows = [['`tiny`', '`tiny-stories`'], [plain_cell(before['text']), plain_cell(after['text'])]]
            parts += [f'`--start="{prompt}" --seed={before["seed"]}`', markdown_table(rows)]
    return '\n\n'.join(parts)


def plain_cell(text):
    """Return a text for a cell of a table: Markdown's signs are shown, new lines are `⏎`."""
    return re.sub(r'([\\`*_\[\]|<])', r'\\\1', ' ⏎ '.join(line for line in text.split('\n') if line.strip()))


def sweep_table(sweep):
    """Return what each way of fine-tuning came to, as Markdown."""
    rows = [['learning rate', 'epochs', 'stories: bits per byte', 'novels: bits per byte', 'pairs: mean logprob']]
    for run in sweep.values():
        stories, novels = (f'{run["texts"][text]["value"]:.3f}' for text in ('tales', 'novels'))
        rows.append(
            [f'{run["learning_rate"]:g}', f'{run["epochs"]:.2f}', stories, novels, f'{run["pairs"][-1]["logprob"]:.2f}']
        )
    return markdown_table(rows)
