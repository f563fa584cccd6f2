"""What the results say about models, whichever they are: pairs and texts scored before and after, figures drawn.

Two models are given as arguments of eval.py, ('--init_from=tiny-stories', '--compare_to=tiny'): after and before.
"""

import shutil
import statistics
from collections import defaultdict
from pathlib import Path

from common.files import PROJECT
from common.json_files import read_json
from common.text_files import read_text_chunks
from lab import measure_report
from lab.experiment_runs import KINDS, OUT, read_scored_pairs, run_script, run_training, write_results
from lab.result_pictures import draw_length, draw_underflow
from lm import checkpoint
from pictures.before_after import draw_kinds
from texts.plain_text import split_documents

STORIES = PROJECT / 'data/childrens_stories/childrens_stories.txt'  # 52, which no model has seen
SWEPT = ('simple', 'heldout')  # the texts that each way to fine-tune is measured on
PROMPT = 'The king had a'  # what the trace and its figure follow
UNCUT = ('--top_k=None', '--top_p=None')


# Pairs and texts, before and after ------------------------------------------------------------------------------------


def measure_pairs(models, results):
    """Score the pairs and the questions: `results`/fine_tuning/pairs, kinds.json and .png, questions.json."""
    questions = OUT / 'questions'
    for folder, file in ((results / 'fine_tuning/pairs', 'eval_data.json'), (questions, 'data/story_questions.json')):
        shutil.rmtree(folder, ignore_errors=True)  # eval.py never overwrites the results of other models
        run_script('eval.py', *models, f'--eval_data={file}', f'--save={folder}')
    kinds = group_kinds(read_scored_pairs(results))
    write_results('fine_tuning/kinds.json', compare_kinds(kinds), results)
    draw_kinds(results / 'fine_tuning/kinds.png', {KINDS.get(kind, kind): pairs for kind, pairs in kinds.items()})
    summary = read_json(questions / 'summary.json')
    answers = {**summary['multiple_choice'], 'comparison': summary['comparison']}
    write_results('fine_tuning/questions.json', answers, results)


def group_kinds(rows):
    """Return the logprobs of the pairs of each kind: {kind: [(before, after)]}, as openings, endings, plain prose."""
    kinds = defaultdict(list)
    for row in rows:
        kinds[row['id'].rpartition('-')[0]].append((row['before']['logprob'], row['logprob']))
    return dict(kinds)


def compare_kinds(kinds):
    """Return how the pairs of each kind changed. kinds: {kind: [(before, after)]}, logprobs."""
    return {
        kind: {
            'pairs': len(pairs),
            'rose': sum(after > before for before, after in pairs),
            'mean_log_ratio': statistics.fmean(after - before for before, after in pairs),
        }
        for kind, pairs in kinds.items()
    }


def measure_texts(models, results, texts):
    """Score running texts, {name: file or dataset}: `results`/fine_tuning/texts.json. Returns its contents."""
    scored = {name: measure_text(models, text) for name, text in texts.items()}
    write_results('fine_tuning/texts.json', scored, results)
    return scored


def measure_text(models, text):
    """Score a running text, a file or the validation part of a dataset, with one model or two.

    Returns its tokens and bytes, and for `model` (and `compare_to`) bits per byte and perplexity with intervals. Only
    these sums are kept: eval.py's rows hold the text itself, which the project may not redistribute.
    """
    folder = OUT / f'text-{Path(text).stem}'
    shutil.rmtree(folder, ignore_errors=True)
    run_script('eval.py', *models, f'--text={text}', f'--save={folder}', quiet=True)
    summary = read_json(folder / 'summary.json')
    measures = {
        role: {name: values[name] for name in ('bits_per_byte', 'perplexity')}
        for role, values in summary['measures'].items()
    }
    return {'tokens': summary['tokens'], 'bytes': summary['bytes'], **measures}


def vary_fine_tuning(config, texts, variants, prefix=''):
    """Fine-tune with other settings; return {name: outcome, with how well the run predicts each of the `texts`}.

    texts: {name: file}. variants: the settings of each run.
    """
    runs = {}
    for settings in variants:
        rate, length = settings['learning_rate'], settings.get('epochs', settings.get('max_iters'))
        name = f'{prefix}rate-{rate:g}-{"epochs" if "epochs" in settings else "steps"}-{length:g}'
        run = run_training(name, config, **settings)
        scored = {text: measure_text((f'--out_dir={OUT / name}',), path)['model'] for text, path in texts.items()}
        runs[name] = {**run, 'texts': scored}
    return runs


# The report's numbers and figures -------------------------------------------------------------------------------------


def make_figures(name, results, tales, draws, cached, device='cpu'):
    """Draw what the report shows of one model; return the numbers of report.json that depend on it.

    name: of the model. tales: a file of fairy tales. draws, cached: as in `measure_report.compute_all`.
    """
    model, tokenizer, _ = checkpoint.load_model(name, device=device)
    stories, tales = (list(split_documents(read_text_chunks(path), '\n\n\n')) for path in (STORIES, tales))
    pairs = [(row['prompt'], row['response']) for row in read_scored_pairs(results)]
    numbers, drawn = measure_report.compute_all(model, tokenizer, stories, tales, pairs, draws, cached)
    draw_length(results / 'report/length.png', drawn['length'])
    draw_underflow(results / 'report/underflow.png', drawn['underflow'], numbers['underflow'])
    for picture, *arguments in (('temperature', '--start=The old king had a', *UNCUT), ('trace', f'--start={PROMPT}')):
        path = results / f'report/{picture}.png'
        run_script('visualize.py', picture, f'--init_from={name}', *arguments, f'--save={path}', quiet=True)
    beams = ('--start=The giant', '--beam_width=5', '--max_new_tokens=6', '--show_beams=True')
    draw_sample(name, results / 'report/beams.png', *beams)
    return numbers


def draw_sample(name, path, *arguments):
    """Draw what sample.py draws with these arguments, its sheet of steps or its tree of beams, as the file `path`."""
    folder = OUT / 'pictures'
    shutil.rmtree(folder, ignore_errors=True)
    run_script('sample.py', f'--init_from={name}', *arguments, f'--plot_dir={folder}', quiet=True)
    (drawn,) = [file for file in folder.glob('*/*.png') if not file.name.startswith('step_')]
    shutil.copyfile(drawn, path)
