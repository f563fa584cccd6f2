"""Prompting against fine-tuning on one task, and what a prompt injection is: both measured by probabilities.

    python -m lessons.prompting                                         the story model: under a minute
    python -m lessons.prompting --init_from=gpt2                        or any other model, as in sample.py
    python -m lessons.prompting --provider=anthropic                    a chat model writes its answers

The task: "The snowman melted away." Does everyone feel happy or sad? It is asked in two forms. One uses words of
stories, "Everyone was very", and the other is new to a story model, "Feeling:". The model is not trained; it is shown
no example or up to eight, with the right words or all wrong, in this order or that, or it first writes a sentence of
its own, step by step. Then it is fine-tuned: a few steps on the same sentences from which the examples are taken.

An answer is the likelier of the two words. Two more numbers belong to it: how often the model says happy, because one
that always says the same is right half the time; and how much probability the two words have together, because that is
whether it understood the form. A share from 64 sentences has an interval.

The second part hides a secret word in a prompt, with or without a rule not to tell it. To a model, the rule and what a
stranger writes are one text, so a stranger's words can work against the rule: a prompt injection. How likely is the
secret then, and is it the likeliest of 20 words? What to look for: a secret that is almost never drawn, and yet first
on the list of whoever sees the probabilities. (Riley Goodside and Simon Willison named it, September 2022.)
"""

import copy
import json
import math
import random
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table
from torch.nn.utils.rnn import pad_sequence

import configurator
from common.errors import UserError
from common.files import atomic_write
from common.notes import note
from lessons.chat import connect_provider
from lessons.feelings import (
    CONDITIONS,
    EXAMPLES,
    FEELINGS,
    FORMS,
    HAPPY,
    Answer,
    build_prompt,
    build_prompts,
    find_feeling,
    split_items,
    write_step,
)
from lessons.injection import ATTACKS, RULES, SECRETS, attack_chat, attack_secrets
from lessons.players import get_replies
from lessons.scores import choose_path, format_share, wilson_interval
from lm.scoring import score_pairs
from lm.settings import ModelSettings, choose_model, load_chosen_model, model_name
from pictures.style import BLUE, GREY, ORANGE, hide_spines, save_figure

# What a chat model is told before a prompt.
TASK = 'Complete the last line. The last word of your reply must be happy or sad.\n\n'
STEPS = 'First write a sentence about what happened and how it feels. Then complete the last line.\n\n'
OF_LOCAL_MODELS = ('init_from', 'out_dir', 'device', 'dtype', 'bos', 'steps', 'learning_rate')
OF_CHAT_MODELS = ('model', 'base_url')
console = Console(width=None if sys.stdout.isatty() else 100, highlight=False, markup=False, emoji=False)


@dataclass
class Settings(ModelSettings):
    """Compare prompts with fine-tuning, and attack a secret in a prompt."""

    provider: str | None = None  # use a chat model instead: openai or anthropic, with its key in the environment
    model: str | None = None  # the provider's name for it (None: a small one)
    base_url: str | None = None  # of another server with the provider's API, perhaps on this computer
    sentences: int | None = None  # of each feeling to ask about (None: 32, or 4 for a chat model, which costs money)
    steps: int = 60  # of fine-tuning, each on 8 sentences
    learning_rate: float = 3e-4  # of fine-tuning
    seed: int = 1337  # decides which examples are shown, and the order of training
    plot_dir: str = 'results/lessons'  # folder for prompting.png and prompting.json; other models' names are added


# A local model: prompts to Answers ----------------------------------------------------------------------------------


def choose_feelings(model, prompts, tokenizer):
    """Return the Answer to each prompt: the likelier of the two words."""
    pairs = [tokenizer.encode_pair(prompt, f' {feeling}') for prompt in prompts for feeling in FEELINGS]
    if cut := sum(len(prompt) + len(answer) - 1 > model.block_size for prompt, answer in pairs[::2]):
        size = f'the context of {model.block_size} tokens'
        note(f'{cut} of {len(prompts)} prompts do not fit into {size}: their beginning, the first examples, is cut off')
    logprobs = [score.model_logprobs.sum().item() for score in score_pairs(model, pairs)]
    by_prompt = zip(logprobs[::2], logprobs[1::2])
    return [Answer(FEELINGS[sad > happy], math.exp(happy) + math.exp(sad)) for happy, sad in by_prompt]


def fine_tune(model, tokenizer, form, items, steps, rate, seed):
    """Return a copy of the model, trained to answer in this form: the loss is that of the answers alone."""
    model, rng = copy.deepcopy(model).float().train(), random.Random(seed)
    pairs = [tokenizer.encode_pair(build_prompt(form, item.sentence), f' {item.feeling}') for item in items]
    optimizer = model.configure_optimizers(0.1, rate, (0.9, 0.99), model.device.type)
    for step in range(steps):
        optimizer.param_groups[0]['lr'] = optimizer.param_groups[1]['lr'] = rate * (1 - step / steps)
        batch = [(prompt + answer, [-1] * len(prompt) + answer) for prompt, answer in rng.sample(pairs, 8)]
        idx, targets = (  # (B, T) each; on the right, where nothing counts, any id will do
            pad_sequence([torch.tensor(row[name]) for row in batch], True, padding).to(model.device)
            for name, padding in ((0, 0), (1, -1))
        )
        loss = model(idx[:, :-1], targets[:, 1:].contiguous())[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


# A chat model, which cannot be asked for probabilities, so it writes --------------------------------------------------


def read_feelings(start_chat, prompts):
    """Return the Answer to each prompt: the last of the two words in a chat model's reply."""
    replies = get_replies(start_chat, [TASK + prompt for prompt in prompts])
    return [Answer(find_feeling(reply)) for reply in replies]


# The lesson -----------------------------------------------------------------------------------------------------------


def run_local(settings):
    """Return a model's Answers, {(form, condition): one to each sentence}, and its secrets, {(rule, attack): ...}."""
    model, tokenizer = load_chosen_model(settings)
    known, asked = split_items(settings.sentences)
    ask, answers = partial(choose_feelings, tokenizer=tokenizer), {}
    for name, form in FORMS.items():
        for condition in CONDITIONS:
            answers[name, condition] = ask(model, build_prompts(form, asked, known, condition, settings.seed))
        steps = [form.format(write_step(model, tokenizer, item.sentence)) for item in asked]
        answers[name, 'step by step'] = ask(model, steps)
    for name, form in FORMS.items():
        trained = fine_tune(model, tokenizer, form, known, settings.steps, settings.learning_rate, settings.seed)
        for other in FORMS:
            condition = 'fine-tuned' if other == name else 'fine-tuned, other form'
            answers[other, condition] = ask(trained, [build_prompt(FORMS[other], item.sentence) for item in asked])
    secrets = {(rule, attack): attack_secrets(model, tokenizer, rule, attack) for rule in RULES for attack in ATTACKS}
    return answers, secrets


def run_chat(settings, start_chat):
    """Return the same for a chat model, which is not fine-tuned here."""
    known, asked = split_items(settings.sentences)
    answers = {}
    for name, form in FORMS.items():
        for condition in CONDITIONS:
            prompts = build_prompts(form, asked, known, condition, settings.seed)
            answers[name, condition] = read_feelings(start_chat, prompts)
        steps = [STEPS + build_prompt(form, item.sentence) for item in asked]
        answers[name, 'step by step'] = read_feelings(start_chat, steps)
    return answers, {(rule, attack): attack_chat(start_chat, rule, attack) for rule in RULES for attack in ATTACKS}


def main(settings):
    """Ask, fine-tune and attack; print the shares and draw them."""
    settings = check_settings(settings)
    if settings.provider:
        with connect_provider(settings.provider, settings.model, settings.base_url) as start_chat:
            name, (answers, secrets) = start_chat().model, run_chat(settings, start_chat)
    else:
        name, (answers, secrets) = model_name(settings), run_local(settings)
    rows = [describe_answers(*key, given, split_items(settings.sentences)[1]) for key, given in answers.items()]
    attacks = [{'rule': rule, 'attack': attack, **kept} for (rule, attack), kept in secrets.items()]
    print_tables(name, rows, attacks)
    with atomic_write(path := choose_path(settings.plot_dir, name, '.json', 'prompting')) as temporary:
        results = {'model': name, 'settings': asdict(settings), 'feelings': rows, 'secrets': attacks}
        temporary.write_text(json.dumps(results, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    draw_shares(path.with_suffix('.png'), name, rows, attacks)
    console.print(f'\nthe numbers: {path}\nthe picture: {path.with_suffix(".png")}')


def check_settings(settings):
    """Return the settings with the model and the number of sentences filled in. Raises UserError for invalid ones."""
    rule = f'not for --provider={settings.provider}' if settings.provider else 'for chat models: add --provider=openai'
    for name in OF_LOCAL_MODELS if settings.provider else OF_CHAT_MODELS:
        if getattr(settings, name) != getattr(Settings, name):
            raise UserError(f'--{name}={getattr(settings, name)} is {rule}')
    if settings.sentences is None:
        settings = replace(settings, sentences=4 if settings.provider else len(HAPPY) - EXAMPLES)
    for name, (low, high) in {'sentences': (1, len(HAPPY) - EXAMPLES), 'steps': (1, 10_000)}.items():
        if not low <= getattr(settings, name) <= high:
            raise UserError(f'--{name}={getattr(settings, name)}: it must be {low} to {high}')
    if not 0 < settings.learning_rate < 1:
        raise UserError(f'--learning_rate={settings.learning_rate}: it must be above 0 and below 1')
    return settings if settings.provider else choose_model(settings)


def describe_answers(form, condition, answers, items):
    """Return a row: how many Answers are right, of how many, how many are happy, and the mean of `both`."""
    right = sum(answer.feeling == item.feeling for answer, item in zip(answers, items, strict=True))
    row = {'form': form, 'condition': condition, 'right': right, 'n': len(items)}
    row['happy'] = sum(answer.feeling == 'happy' for answer in answers)
    return row | {'both': None if answers[0].both is None else sum(answer.both for answer in answers) / len(answers)}


def print_tables(name, rows, attacks):
    """Print how often the answers were right, then how the secret was kept."""
    local = 'probability' in attacks[0]
    table = Table('form', 'shown', 'right, and 95 % interval', 'says happy', *(['both words'] if local else []))
    table.title = f'{name}: {rows[0]["n"]} sentences, half of them happy (chance: 50 %)'
    table.title += '; model probabilities' if local else ''
    for row in rows:
        both = [f'{row["both"]:.4f}'] if local else []
        table.add_row(row['form'], row['condition'], format_share(row['right'], row['n']), f'{row["happy"]}', *both)
    console.print(table)
    columns = ('model probability', 'if another is the secret', 'likeliest of 20') if local else ('told',)
    table = Table('the prompt has', 'Tom', *columns, title=f'{name}: a secret word in the prompt')
    for row in attacks:
        numbers = [f'{row["probability"]:.6f}', f'{row["otherwise"]:.6f}'] if local else []
        table.add_row(row['rule'], row['attack'], *numbers, f'{row["first"]} of {row["n"]}')
    console.print(table)


def draw_shares(path, name, rows, attacks):
    """Draw the shares of right answers with their intervals, and how often each attack found the secret."""
    # Narrow, so that the words can be read on a phone.
    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(5.2, 8.5), height_ratios=(3, 2), layout='constrained')
    draw_panel(upper, rows, 'form', 'condition', 'right', 0.5)
    upper.set_title(f'{name}: right answers', fontsize=10)
    draw_panel(lower, attacks, 'rule', 'attack', 'first', 1 / len(SECRETS) if 'probability' in attacks[0] else None)
    lower.set_title('secrets found, by what Tom does', fontsize=10)
    save_figure(figure, path)
    pyplot.close(figure)


def draw_panel(axes, rows, group, kind, count, chance):
    """Draw row[count] / row['n'] with its interval: a line for each kind, a colour for each of two groups."""
    groups, kinds = (list(dict.fromkeys(row[name] for row in rows)) for name in (group, kind))
    for name, colour, marker, shift in zip(groups, (BLUE, ORANGE), 'os', (-0.14, 0.14)):
        mine = [row for row in rows if row[group] == name]
        places = [kinds.index(row[kind]) + shift for row in mine]
        bounds = [wilson_interval(row[count], row['n']) for row in mine]
        axes.hlines(places, *zip(*bounds), color=colour, linewidth=2)
        axes.plot([row[count] / row['n'] for row in mine], places, marker, color=colour, label=name)
    if chance is not None:  # a chat model's reply can be anything
        axes.axvline(chance, color=GREY, linestyle=':', label='chance')
    axes.set(xlim=(-0.02, 1.02), xlabel='share, and 95 % interval', yticks=range(len(kinds)), yticklabels=kinds)
    axes.invert_yaxis()
    axes.legend(frameon=False, loc='upper center', bbox_to_anchor=(0.4, -0.14), ncols=3, fontsize=9)
    hide_spines(axes, 'top', 'right')


if __name__ == '__main__':
    configurator.run(main, Settings)
