"""What the README shows, with a model that is no GPT-2: a small Llama with pieces in the manner of SentencePiece."""

import json

import pytest
import torch
from helpers.networks import random_network
from helpers.piece_tokenizers import save_llama_tokenizer
from helpers.scripts import PROJECT
from helpers.world import call, number_after, samples_in
from transformers import AutoModelForCausalLM, AutoTokenizer

import export
import visualize
from common.errors import UserError
from common.notes import forget_notes

SMALL = {'hidden_size': 64, 'max_position_embeddings': 256, 'num_hidden_layers': 2}
LLAMA = '--init_from=llama'

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def llama(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forget_notes()
    n_ids = save_llama_tokenizer(tmp_path / 'llama')
    random_network('llama', vocab_size=n_ids + 12, **SMALL).save_pretrained('llama')


def transformers_logprob(prompt, response):
    """Return transformers' own logprob of a response, with the ids masked that no text has."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained('llama'), AutoTokenizer.from_pretrained('llama')
    whole, n = tokenizer.encode(prompt + response), len(tokenizer.encode(prompt))
    with torch.no_grad():
        logits = network(torch.tensor([whole])).logits[0].double()
    logits[:, len(tokenizer) :] = -torch.inf
    logprobs = logits.log_softmax(-1)
    return sum(logprobs[place - 1, whole[place]].item() for place in range(n, len(whole)))


def test_sampling_scoring_and_searching(capsys):
    call('sample.py', LLAMA, '--start=The fog', '--fixed_response= had a boat', '--temperature=1')
    printed = capsys.readouterr()
    (text, _, model), *_ = samples_in(printed.out)
    assert text == 'The fog had a boat'
    expected = transformers_logprob('The fog', ' had a boat')
    assert number_after('logprob', model) == pytest.approx(expected, rel=1e-5)
    assert printed.err.count('puts <s> before each text') == 1
    call(
        'sample.py', LLAMA, '--start=The fog', '--show_probs=True', '--html=True', '--max_new_tokens=4', '--plot_dir=p'
    )
    call('sample.py', LLAMA, '--start=The fog', '--beam_width=3', '--max_new_tokens=4', '--show_beams=True')
    call('sample.py', LLAMA, '--start=The fog', '--most_probable=2', '--max_new_tokens=2', '--quantize=int8')
    assert 'exact' in capsys.readouterr().out


def test_evaluating_beside_a_gpt2(capsys):
    pairs = [['The fog', ' had a boat'], ['"It\'s the', ' fog," said her father']]
    with open('pairs.json', 'w') as file:
        json.dump(pairs, file)
    call('eval.py', LLAMA, '--compare_to=tiny', '--eval_data=pairs.json', '--save=compared')
    with open('results/compared/pairs.jsonl') as file:
        rows = [json.loads(line) for line in file]
    assert [row['logprob'] for row in rows] == pytest.approx([transformers_logprob(*pair) for pair in pairs], rel=1e-5)
    with open('text.txt', 'w') as file:
        file.write('The fog had a boat. ' * 40)
    call('eval.py', LLAMA, '--compare_to=tiny', '--text=text.txt')
    assert 'bits per byte' in capsys.readouterr().out


@pytest.mark.parametrize('picture', ['temperature', 'attention', 'layers', 'embeddings'])
def test_pictures(picture):
    show, settings = visualize.load_picture(picture)
    text = {'words': 'a,b,c,d'} if picture == 'embeddings' else {'start': 'The fog had a boat'}
    show(settings(init_from='llama', save='picture.png', **text))


def test_what_needs_a_gpt2_says_so():
    show, settings = visualize.load_picture('trace')
    for run in (
        lambda: show(settings(init_from='llama', start='The fog', save='picture.png')),
        lambda: export.main(export.Settings(init_from='llama', folder='out')),
        lambda: call('train.py', LLAMA, f'--dataset={PROJECT / "data" / "childrens_stories"}'),
    ):
        with pytest.raises(UserError, match="is of type 'llama'"):
            run()
