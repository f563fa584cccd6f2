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
from common.text_files import read_text
from texts.token_files import open_tokens

SMALL = {'hidden_size': 64, 'max_position_embeddings': 256, 'num_hidden_layers': 2}
LLAMA = '--init_from=llama'

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def llama(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forget_notes()
    n_ids = save_llama_tokenizer(tmp_path / 'llama')
    random_network('llama', vocab_size=n_ids + 12, **SMALL).save_pretrained('llama')


def transformers_logprob(prompt, response, folder='llama'):
    """Return transformers' own logprob of a response, with the ids masked that no text has."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
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


def test_preparing_texts_fine_tuning_and_exporting(capsys):
    stories = PROJECT / 'data' / 'childrens_stories' / 'childrens_stories.txt'
    call('prepare_bin.py', f'--input={stories}', '--dataset=mine', '--tokenizer=llama', '--max_documents=20')
    printed = capsys.readouterr()
    assert 'python train.py config/finetune_stories.py --init_from=llama --dataset=mine' in printed.out
    assert 'note: </s><s> is put before, between and after the documents' in printed.err
    tokens = open_tokens('mine', 'train')[:200].tolist()
    assert tokens[:2] == [2, 1]
    first, text = read_text(stories).split('\n\n\n'), AutoTokenizer.from_pretrained('llama')
    assert any(text.encode(story)[:198] == tokens[1:199] for story in first)  # <s> and a whole story
    short = ['--block_size=32', '--batch_size=4', '--max_iters=4', '--eval_interval=2', '--eval_iters=2']
    with open('pairs.json', 'w') as file:
        json.dump([['The fog', ' had a boat']], file)
    shown = ['--sample_prompt=The fog', '--eval_file=pairs.json', '--dtype=float32']
    call('train.py', 'config/finetune_stories.py', LLAMA, '--dataset=mine', '--lora_rank=2', *short, *shown)
    assert "sample: 'The fog" in capsys.readouterr().out
    call('eval.py', '--out_dir=out', '--compare_to=llama', '--text=mine')
    export.main(export.Settings(out_dir='out', folder='tuned'))
    call('sample.py', '--init_from=tuned', '--start=The fog', '--fixed_response= had a boat', '--temperature=1')
    (_, _, model), *_ = samples_in(capsys.readouterr().out)
    expected = transformers_logprob('The fog', ' had a boat', 'tuned')
    assert number_after('logprob', model) == pytest.approx(expected, rel=1e-5)
    assert expected != transformers_logprob('The fog', ' had a boat')


def test_a_trace_needs_a_gpt2():
    show, settings = visualize.load_picture('trace')
    with pytest.raises(UserError, match="is of type 'llama'"):
        show(settings(init_from='llama', start='The fog', save='picture.png'))
