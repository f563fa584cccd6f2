"""Settings that scripts share: which model to load, and how to sample from it. Each is declared and checked once."""

import re
import sys
from dataclasses import dataclass, replace

import torch

from common.errors import UserError
from common.files import expand_path, names_file
from common.notes import note
from common.text_files import read_text
from lm import fast
from lm.boundary import describe_join, join_response
from lm.chat import start_chat
from lm.checkpoint import load_model, require_tokenizer
from lm.hardware import check_compiler, explain_compile_errors
from lm.locate import locate_model
from lm.roles import choose_front
from lm.search import Budget
from lm.text_probability import QUANTITIES
from lm.tuning import MANY_PRODUCTS, TUNE
from model import check_sampler

SEARCHES = ('beam_width', 'most_probable', 'above', 'next_words')  # each takes the place of drawing samples
SAMPLER = ('temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty')  # what makes a sampler of the model
MAX_DRAWN_BEAMS, MAX_DRAWN_STEPS = 40, 60  # more would be unreadable in one picture


@dataclass
class ModelChoice:
    """Which model to load."""

    init_from: str | None = None  # tiny-stories (None), tiny, gpt2, hub name[@revision], folder, .pt file, resume
    out_dir: str | None = None  # where resume finds ckpt.pt (None: out); given alone, it means resume


@dataclass
class ModelSettings(ModelChoice):
    """Which model to load, and how to compute with it."""

    device: str | None = None  # cpu, gpu, cuda, cuda:1, mps; None for the best available
    dtype: str | None = None  # float32 (None), bfloat16 or float16
    bos: bool | None = None  # put the BOS token before each text? None for what the model's tokenizer does by itself


@dataclass
class SamplingSettings(ModelSettings):
    """The settings of sample.py, all of which eval.py takes too."""

    start: str = 'Once upon a time'  # the prompt, or FILE:path to read it from a file; '' is <|endoftext|>
    fixed_response: str | None = None  # a response to score instead of sampling; top_k, top_p and min_p spare it
    separator: str = ' '  # put between prompt and response if two words would run together; '' for none
    num_samples: int = 1  # how many samples to draw, all in one batch
    max_new_tokens: int = 100  # tokens in each sample
    temperature: float = 0.8  # 1 is the model's own distribution; lower is more predictable, 0 is greedy
    top_k: int | None = 200  # draw from the k likeliest tokens only; None for all
    top_p: float | None = None  # draw from the likeliest tokens that together have this probability; None for all
    min_p: float | None = None  # draw from tokens at least this many times as likely as the likeliest, say 0.05
    repetition_penalty: float = 1.0  # above 1, say 1.2: tokens of prompt and response so far become less likely
    chat: bool = False  # put prompts and pairs through the model's own chat template
    system: str | None = None  # with chat: the text of a system message before each prompt
    score_end: bool = False  # with chat: the token that ends the model's turn is part of a response that is scored
    stop_at_eot: bool | None = None  # end samples at the model's end tokens, as <|endoftext|> (None: with chat only)
    seed: int = 1337  # the same seed draws the same text
    show_probs: bool = False  # draw bar charts of the likeliest tokens at every step
    plot_steps: int = 20  # how many steps to draw
    plot_dir: str = 'results'  # charts go into a new folder in here
    quantize: str | None = None  # int8: eight-bit weights, faster and smaller; probabilities change slightly
    tune: str = 'once'  # measure which way to multiply is the fastest here, and remember it: once, again or never
    verbose: bool = False  # print what was measured, and chosen
    compile: bool = False  # torch.compile the model: a slower start, then faster
    html: bool = False  # write one page with every step, to explore in a browser, instead of show_probs' charts
    beam_width: int | None = None  # search with this many beams instead of sampling; ranks by model probability
    length_penalty: float = 0.0  # with stop_at_eot, rank finished beams by logprob / length ** length_penalty
    show_beams: bool = False  # draw the first plot_steps steps of the beam search as a tree
    most_probable: int | None = None  # find the k most probable continuations of max_new_tokens (say 6), and prove it
    above: float | None = None  # find every continuation of max_new_tokens tokens that is likelier than this
    next_words: int | None = None  # find the k likeliest next words, over all ways to cut them into tokens
    whole_text: str | None = None  # True: the probability of fixed_response over all ways to cut it; start; ratio
    budget: str = '60s,1GB'  # limits of these searches: seconds, memory (500MB), prefixes (20000), or None

    @property
    def stops(self):
        """Whether samples end at a token that ends a text, or a turn."""
        return self.chat if self.stop_at_eot is None else self.stop_at_eot

    def sampler(self, fixed=False):
        """Return the settings of `model.logits_to_logprobs` that apply; nothing is cut off from a fixed response."""
        names = ['temperature', 'repetition_penalty'] if fixed else SAMPLER
        return {name: getattr(self, name) for name in names}


def check_sampling_settings(settings):
    """Return the settings with the model filled in; raise UserError for invalid values."""
    try:
        check_sampler(**settings.sampler())
    except ValueError as error:
        raise UserError(f'--{error}') from error
    if settings.quantize and (settings.compile or settings.dtype not in (None, 'float32')):
        other = 'compile' if settings.compile else 'dtype'
        raise UserError(f'--quantize={settings.quantize} cannot be combined with --{other}')
    if settings.tune not in TUNE:
        raise UserError(f'--tune={settings.tune} is not one of {", ".join(TUNE)}')
    for name in ('num_samples', 'max_new_tokens', 'plot_steps'):
        if getattr(settings, name) < 0:
            raise UserError(f'--{name}={getattr(settings, name)}: it cannot be negative')
    for name in ('system', 'score_end'):
        if getattr(settings, name) not in (None, False) and not settings.chat:
            raise UserError(f'--{name} needs --chat=True, which puts prompts through the chat template of a model')
    if settings.chat:
        if settings.separator not in ('', SamplingSettings.separator):
            note('--separator has no effect with --chat: the template decides what is before a response')
        settings = replace(settings, separator='')
    whole_text = {'true': 'response', 'false': None}.get(str(settings.whole_text).lower(), settings.whole_text)
    if settings.chat and (whole_text not in (None, 'response') or (whole_text and settings.score_end)):
        other = 'score_end' if whole_text == 'response' else f'whole_text={whole_text}'
        raise UserError(
            f'--{other} and --chat cannot be combined here: the special tokens of a chat template are no text, which '
            'could be cut in other ways; --whole_text=True is about the response alone'
        )
    return choose_model(replace(settings, whole_text=whole_text))


def end_tokens(tokenizer, settings):
    """Return the ids that end a sample; None if the settings let it go on."""
    return tokenizer.roles.ends if settings.stops else None


def chosen_search(settings):
    """Return the name of the search that the settings ask for, None if they ask for none."""
    return next((name for name in SEARCHES if getattr(settings, name) is not None), None)


def check_search_settings(settings):
    """Raise UserError for invalid values of the settings for searches."""
    for name in SEARCHES:
        for positive in (name, 'max_new_tokens') if getattr(settings, name) is not None else ():
            if positive != 'above' and getattr(settings, positive) < 1:
                raise UserError(f'--{positive}={getattr(settings, positive)}: it must be at least 1')
    if settings.above is not None and not 0 < settings.above < 1:
        raise UserError(f'--above={settings.above}: it must be a probability above 0 and below 1')
    if settings.whole_text not in (None, *QUANTITIES):
        raise UserError(f'--whole_text={settings.whole_text} is neither True nor one of {", ".join(QUANTITIES)}')
    if not abs(settings.length_penalty) <= 10:
        raise UserError(f'--length_penalty={settings.length_penalty}: it must be between -10 and 10')
    draws = settings.show_beams and settings.beam_width is not None
    if draws and settings.beam_width > MAX_DRAWN_BEAMS:
        raise UserError(f'--beam_width={settings.beam_width}: --show_beams draws at most {MAX_DRAWN_BEAMS} beams')
    if draws and not 1 <= settings.plot_steps <= MAX_DRAWN_STEPS:
        raise UserError(f'--plot_steps={settings.plot_steps}: --show_beams draws 1 to {MAX_DRAWN_STEPS} steps')


def parse_budget(text):
    """Return the Budget that --budget describes. Raises UserError if it is not one."""
    units = {'': ('prefixes', 1), 's': ('seconds', 1), 'MB': ('mebibytes', 1), 'GB': ('mebibytes', 1024)}
    limits = {}
    for part in [] if text.lower() == 'none' else text.split(','):
        match = re.fullmatch(r'(\d+(?:\.\d+)?)(|s|MB|GB)', part.strip())
        if not match:
            allowed = 'seconds (60s), memory (500MB, 2GB), prefixes (20000), several with commas, or None'
            raise UserError(f'--budget={text}: {part.strip()!r} is not a limit; give {allowed}')
        name, factor = units[match[2]]
        if name in limits:
            raise UserError(f'--budget={text} limits {name} twice')
        limits[name] = float(match[1]) * factor
    return Budget(**limits)


def text_budget(settings):
    """Return the Budget of the search for the probability of one of many texts: --budget, or two seconds."""
    return parse_budget('2s,1GB' if settings.budget == SamplingSettings.budget else settings.budget)


def choose_model(settings):
    """Return the settings with init_from and out_dir filled in.

    As in nanoGPT, --out_dir=FOLDER alone means the model that was trained there.
    """
    init_from = settings.init_from
    if init_from is None:
        init_from = 'tiny-stories' if settings.out_dir is None else 'resume'
    paths = {'init_from': init_from, 'out_dir': settings.out_dir or 'out'}
    paths = {name: str(expand_path(path)) if path.startswith('~') else path for name, path in paths.items()}
    return replace(settings, **paths)


def settings_of_models(settings):
    """Return the settings of the model and, if compare_to names one, those of the model to compare it with.

    Both find 'resume' in the same out_dir.
    """
    compared = [] if settings.compare_to is None else [replace(settings, init_from=settings.compare_to)]
    return [settings, *map(choose_model, compared)]


def model_name(settings):
    """Return what to call the model of the settings: its name, or the folder of its run."""
    return settings.out_dir if settings.init_from == 'resume' else settings.init_from


def load_chosen_model(settings, to_pack=False):
    """Return (model, tokenizer) of the settings, not yet optimised. Raises UserError if either is missing.

    to_pack: whether `optimise_for_inference` follows.
    """
    model, tokenizer, _ = load_model(
        settings.init_from, settings.out_dir, settings.device, settings.dtype, to_pack=to_pack
    )
    name = model_name(settings)
    require_tokenizer(tokenizer, name)
    if isinstance(settings, SamplingSettings) and settings.chat:
        start_chat(tokenizer, model_folder(settings), name, settings.system, settings.score_end, settings.bos)
    else:
        choose_front(tokenizer, settings.bos, name)
    return model, tokenizer


def model_folder(settings):
    """Return the folder of the model of the settings."""
    path = expand_path(settings.out_dir) if settings.init_from == 'resume' else locate_model(settings.init_from)
    return path if path.is_dir() else path.parent


def optimise_for_inference(model, settings, rows=1, products=MANY_PRODUCTS):
    """Return the model, compiled or with packed matrices, as the settings ask: no longer trainable.

    rows: how many tokens will mostly be computed at a time. products: how many times, about.
    """
    if settings.compile:
        check_compiler(model.device)
        model.hidden = explain_compile_errors()(torch.compile(model.hidden, dynamic=True))
        return model
    fast.pack(model, settings.quantize, rows, settings.tune, products)
    if settings.verbose and model.tuning is not None:
        print(f'matrices of {model_name(settings)}: {model.tuning}', file=sys.stderr)
    return model


def read_prompt(start):
    """Return the prompt that --start means: the text itself, or the contents of the file after FILE:."""
    if not start.startswith('FILE:'):
        named = re.sub('^(@|file:)', '', start, flags=re.IGNORECASE)
        if names_file(named):
            note(f'the prompt is {start!r} itself; to read that file: --start=FILE:{named}')
        return start
    path = expand_path(start.removeprefix('FILE:'))
    try:
        text = read_text(path)
    except UserError as error:
        raise UserError(f'--start={start}: {error}') from error
    if not text.strip():
        note(f'{path} is empty, so the prompt is {text!r}' if text else f'{path} is empty: so is the prompt')
    if text.endswith('\n'):
        note(f'the line break at the end of {path} is not part of the prompt')
        text = text[:-1]
    return text


def join_fixed_response(prompt, settings):
    """Return --fixed_response as it follows the prompt, and say so if the separator was put between them."""
    response = join_response(prompt, settings.fixed_response, settings.separator)
    if response != settings.fixed_response:
        note(describe_join(settings.separator))
    return response
