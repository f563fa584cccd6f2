"""The adapter against lm-evaluation-harness's own model of the same folder, and through its command."""

import json

import pytest
from helpers.scripts import PROJECT, assert_friendly_error, run_script
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from evaluation.lm_eval_adapter import NanoGPTProbs

FOLDER = PROJECT / 'models' / 'tiny-stories'
TASK = """
task: kings
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {folder}/kings.jsonl
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture(scope='module')
def ours():
    return NanoGPTProbs('tiny-stories', device='cpu')


@pytest.fixture(scope='module')
def theirs():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    return HFLM(pretrained=str(FOLDER), tokenizer=tokenizer, dtype='float32', device='cpu', max_length=256)


def requests(kind, *arguments):
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


def test_it_is_registered(ours):
    assert get_model('nanogpt-probs') is type(ours)


def test_loglikelihood_equals_the_harness(ours, theirs):
    pairs = [(pair['prompt'], pair['response']) for pair in json.loads((PROJECT / 'eval_data.json').read_text())]
    pairs += [('', 'Once'), ('The king ', 'said'), ('a\n', '\nb'), ('Once upon a', ' time')]
    expected = theirs.loglikelihood(requests('loglikelihood', *pairs), disable_tqdm=True)
    found = ours.loglikelihood(requests('loglikelihood', *pairs), disable_tqdm=True)
    assert found == [(pytest.approx(logprob, abs=1e-4), greedy) for logprob, greedy in expected]
    assert any(greedy for _, greedy in expected)


def test_rolling_equals_the_harness(ours, theirs):
    story = (PROJECT / 'data' / 'childrens_stories' / 'childrens_stories.txt').read_text()
    texts = [(story[:size],) for size in (1, 100, 1500)]
    expected = theirs.loglikelihood_rolling(requests('loglikelihood_rolling', *texts), disable_tqdm=True)
    found = ours.loglikelihood_rolling(requests('loglikelihood_rolling', *texts), disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-4, rel=1e-7)  # theirs is summed in float32


@pytest.mark.parametrize(
    'settings',
    [
        {'until': ['.'], 'max_gen_toks': 40},
        {'until': '\n', 'max_gen_toks': 5},
        {'until': [], 'max_new_tokens': 12, 'do_sample': False, 'temperature': 0.9},
        {'until': ['the', 'and'], 'max_gen_toks': 200},
        {'until': [], 'max_gen_toks': 30, 'repetition_penalty': 1.3},
    ],
)
def test_generated_text_equals_the_harness(ours, theirs, settings):
    contexts = [('Once upon a time', dict(settings)), ('The little fox said to the bear, ' * 40, dict(settings))]
    expected = theirs.generate_until(requests('generate_until', *contexts), disable_tqdm=True)
    assert ours.generate_until(requests('generate_until', *contexts), disable_tqdm=True) == expected


def test_the_settings_of_a_task_reach_the_sampler(ours):
    def generated(**settings):
        request = ('The king', {'until': [], 'max_gen_toks': 12, **settings})
        return ours.generate_until(requests('generate_until', request), disable_tqdm=True)

    drawn = generated(do_sample=True, temperature=1.0)
    assert drawn != generated()
    assert generated(do_sample=True, temperature=1.0, top_k=1) == generated()
    assert generated(do_sample=True, temperature=1.0, top_p=1e-9) == generated()
    assert generated(do_sample=True, temperature=1.0, min_p=1.0) == generated()
    assert generated(do_sample=True, temperature=1.0, top_k=0) == drawn


@pytest.mark.slow
def test_a_task_runs_from_the_command_line(tmp_path):
    with open(tmp_path / 'kings.jsonl', 'w') as file:
        for pair in json.loads((PROJECT / 'eval_data.json').read_text()):
            if 'distractors' in pair:
                choices = [text.strip() for text in (pair['response'], *pair['distractors'])]
                file.write(json.dumps({'query': pair['prompt'], 'choices': choices}) + '\n')
    (tmp_path / 'kings.yaml').write_text(TASK.format(folder=tmp_path))
    arguments = ['--model', 'nanogpt-probs', '--model_args', 'init_from=tiny-stories', '--tasks', 'kings']
    arguments += ['--device', 'cpu', '--include_path', '.', '--output_path', 'out']
    env = {'HF_HUB_OFFLINE': '1', 'HF_HOME': str(tmp_path / 'cache')}
    process = run_script('evaluation.lm_eval_adapter', *arguments, cwd=tmp_path, env=env, timeout=300)
    assert process.returncode == 0, process.stderr
    (path,) = (tmp_path / 'out').rglob('results*.json')
    found = json.loads(path.read_text())['results']['kings']
    evaluated = run_script('eval.py', '--device=cpu', '--save=./eval', '--show=0', cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    acc = json.loads((tmp_path / 'eval' / 'summary.json').read_text())['multiple_choice']['model']['acc']
    assert found['acc,none'] == pytest.approx(acc['value'])


@pytest.mark.slow
def test_a_model_that_is_missing(tmp_path):
    arguments = ['--model', 'nanogpt-probs', '--model_args', 'init_from=./nowhere', '--tasks', 'lambada_openai']
    process = run_script('evaluation.lm_eval_adapter', *arguments, cwd=tmp_path, env={'HF_HUB_OFFLINE': '1'})
    lines = [line for line in process.stderr.splitlines() if line.startswith('error:')]
    assert process.returncode == 2
    assert len(lines) == 1
    assert 'nowhere' in lines[0]


def test_without_the_harness_it_says_what_to_install(tmp_path):
    (tmp_path / 'lm_eval.py').write_text('raise ImportError')
    process = run_script(
        'evaluation.lm_eval_adapter', '--help', cwd=tmp_path, env={'PYTHONPATH': f'{tmp_path}:{PROJECT}'}
    )
    assert_friendly_error(process, 'pip install lm_eval')
