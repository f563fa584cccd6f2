"""prepare_bin.py --pairs: what is trained on is what eval.py scores, and the mask belongs to the tokens."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import STORIES, ids_of, meta_of, prepare, save_small_bpe

import prepare_bin
from common.errors import UserError
from common.notes import forget_notes
from evaluation.sources import PairSource
from lm.tokenizer import tokenizer_from_contents
from texts.token_files import open_mask, open_tokens

PAIRS = [
    {'prompt': f'{name}?', 'response': f'{name} went {way}.'}
    for name in ('Ada', 'Élan', 'Gus', 'Ivy 🐌')
    for way in ('up', 'down', 'far', 'home')
]
AWKWARD = [
    {'prompt': '', 'response': 'went home.'},  # it begins a text
    {'prompt': 'Ada ', 'response': 'went'},  # the space moves to the response
    {'prompt': 'Ada\n\n', 'response': ' went up, \n'},
    {'prompt': 'Ada went hom', 'response': 'e', 'distractors': ['age']},  # they run together
    {'prompt': ' \n', 'response': 'The Tale'},
]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def bpe(tmp_path_factory):
    return save_small_bpe(tmp_path_factory.mktemp('bpe'))


def prepare_pairs(made, **settings):
    """Run prepare_bin.py on pairs in the current folder; return the folder of the dataset."""
    Path('pairs.json').write_text(json.dumps(made))
    return prepare(None, **{'input': '', 'pairs': 'pairs.json', 'val_fraction': 0.3} | settings)


def pairs_of(folder, split):
    """Return (prompt ids, response ids with the end) of each pair in a .bin file, as its mask says."""
    mask = np.fromfile(folder / f'{split}.mask.bin', np.uint8).tolist()
    runs = [
        [id for id, _ in run]
        for _, run in itertools.groupby(zip(ids_of(folder, split), mask, strict=True), lambda x: x[1])
    ]
    return list(zip(runs[::2], runs[1::2], strict=True))


def expected_pairs(tokenizer, separator=' '):
    """Return the same from the file, as eval.py encodes it."""
    source, end = PairSource('pairs.json'), [tokenizer.eot]
    encoded = [source.encode(pair, [tokenizer], 'joint', separator).pairs[0][0] for _, pair in source.units()]
    return [(prompt, response + end) for prompt, response in encoded]


@pytest.mark.parametrize(
    'separator', [' ', *(pytest.param(separator, marks=pytest.mark.slow) for separator in ('', '\n'))]
)
def test_each_pair_is_what_eval_scores_and_an_end(bpe, separator):
    pairs = [*PAIRS, *AWKWARD, {'prompt': 'Say', 'response': ''}]
    folder = prepare_pairs(pairs, tokenizer=str(bpe), pair_separator=separator, test_fraction=0.1)
    expected = expected_pairs(tokenizer_from_contents(meta_of(folder)['tokenizer']), separator)[:-1]
    found = {split: pairs_of(folder, split) for split in ('train', 'val', 'test')}
    assert all(found.values())
    assert sorted(itertools.chain(*found.values())) == sorted(expected)
    for split, here in found.items():  # in the order of the file
        assert here == [pair for pair in expected if pair in here]
        meta = meta_of(folder)[split]
        assert meta['documents'] == len(here)
        assert meta['response_tokens'] == sum(len(response) for _, response in here)
    assert meta_of(folder)['empty_skipped'] == 1


def test_the_bytes_that_count_are_those_of_the_responses(bpe):
    pairs = [{'prompt': 'Ada ', 'response': 'went'}, {'prompt': 'Bo', 'response': 'é'}]
    meta = meta_of(prepare_pairs(pairs, tokenizer=str(bpe), val_fraction=0))['train']
    assert (meta['bytes'], meta['response_bytes']) == (
        len('Ada went') + len('Bo é'.encode()),
        len(' went') + len(' é'.encode()),
    )


@pytest.mark.slow
@pytest.mark.parametrize('form', ['lists', 'jsonl', 'csv', 'other keys'])
def test_pairs_come_in_any_form_that_eval_reads(bpe, form):
    expected = prepare_pairs(PAIRS, tokenizer=str(bpe))
    expected = [(expected / name).read_bytes() for name in ('train.bin', 'train.mask.bin', 'val.bin')]
    path, keys = Path(f'others.{"jsonl" if form == "jsonl" else "csv" if form == "csv" else "json"}'), {}
    if form == 'csv':
        with open(path, 'w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, ['prompt', 'response'])
            writer.writeheader()
            writer.writerows(PAIRS)
    elif form == 'jsonl':
        path.write_text(''.join(f'{json.dumps(pair)}\n' for pair in PAIRS))
    elif form == 'lists':
        path.write_text(json.dumps([list(pair.values()) for pair in PAIRS]))
    else:
        keys = {'prompt_key': 'frage', 'response_key': 'antwort'}
        path.write_text(json.dumps([dict(zip(keys.values(), pair.values())) for pair in PAIRS]))
    folder = prepare(None, input='', pairs=str(path), tokenizer=str(bpe), val_fraction=0.3, dataset='tales', **keys)
    assert [(folder / name).read_bytes() for name in ('train.bin', 'train.mask.bin', 'val.bin')] == expected


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_bytes(bpe, monkeypatch):
    monkeypatch.setattr(prepare_bin, 'BATCH', 2000)
    monkeypatch.setattr(prepare_bin, 'BYTES_PER_WORKER', 1)
    pairs = [{'prompt': f'{number}. {story[:30]}', 'response': story[30:]} for number in range(9) for story in STORIES]
    written = []
    for num_workers in (1, 2):
        folder = prepare_pairs(pairs, tokenizer=str(bpe), num_workers=num_workers)
        written.append({path.name: path.read_bytes() for path in folder.glob('*.*')})
    assert written[0] == written[1]
    assert {'train.mask.bin', 'val.mask.bin'} < written[0].keys()


@pytest.mark.parametrize('more', [{'train_bpe': 300}, {'tokenizer': 'char'}], ids=['bpe', 'char'])
def test_a_tokenizer_may_be_made_of_the_pairs(more):
    folder = prepare_pairs(PAIRS, separator='\\n###\\n', **more)
    tokenizer = tokenizer_from_contents(meta_of(folder)['tokenizer'])
    end = '<|endoftext|>' if 'train_bpe' in more else '\n###\n'
    texts = [tokenizer.decode(prompt) + tokenizer.decode(response) for prompt, response in pairs_of(folder, 'train')]
    assert texts
    assert set(texts) <= {f'{pair["prompt"]} {pair["response"]}{end}' for pair in PAIRS}


def test_notes_say_what_is_unusual_about_pairs(bpe, capsys):
    forget_notes()
    prepare_pairs([*PAIRS, {'prompt': 'Ada went hom', 'response': 'e'}], tokenizer=str(bpe), pair_separator='')
    notes = capsys.readouterr().err
    assert 'note: a pair: prompt and response meet inside a token' in notes
    prepare_pairs(PAIRS, tokenizer=str(bpe))
    printed = capsys.readouterr()
    assert '--pair_separator= leaves it out (16 of 16 pairs)' in printed.err
    assert 'of them in responses' in printed.out


def test_equal_pairs_are_left_out_but_not_equal_texts(bpe):
    pairs = [*PAIRS, PAIRS[0], {'prompt': 'Ada? Ada', 'response': 'went up.'}]
    assert meta_of(prepare_pairs(pairs, tokenizer=str(bpe)))['duplicates_dropped'] == 1
    assert meta_of(prepare_pairs(pairs, tokenizer=str(bpe), keep_duplicates=True))['duplicates_dropped'] == 0


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'input': 'a.txt'}, 'texts and pairs do not go into one dataset'),
        ({'hf_dataset': 'someone/tales'}, 'texts and pairs do not go into one dataset'),
        ({'text_column': 'story'}, '--prompt_key and --response_key'),
        ({'pairs': 'nowhere.json'}, r'nowhere\.json'),
        ({'prompt_key': 'frage'}, 'has no key --prompt_key=frage'),
        ({'max_documents': 1}, r'1 pair: not enough for train, val; .*use more pairs or --val_fraction=0'),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(bpe, settings, message):
    with pytest.raises(UserError, match=message) as error:
        prepare_pairs(PAIRS, tokenizer=str(bpe), **settings)
    assert '\n' not in str(error.value)
    assert not Path('data').exists()


def test_a_bad_pair_is_named_and_left_out_on_request(bpe, capsys):
    pairs = [*PAIRS[:5], {'prompt': 'no response'}, *PAIRS[5:]]
    with pytest.raises(UserError, match=r'pair 5 has none of the keys response.*--skip_bad=True leaves it out'):
        prepare_pairs(pairs, tokenizer=str(bpe))
    folder = prepare_pairs(pairs, tokenizer=str(bpe), skip_bad=True, val_fraction=0)
    assert len(pairs_of(folder, 'train')) == len(PAIRS)
    assert 'pair 5' in capsys.readouterr().err
    with pytest.raises(UserError, match='no pair with a response'):
        prepare_pairs([{'prompt': 'a', 'response': ''}], tokenizer=str(bpe))


# Masks and the tokens they belong to ----------------------------------------------------------------------------------


def test_a_mask_does_not_survive_the_texts_that_replace_its_pairs(bpe):
    folder = prepare_pairs(PAIRS, tokenizer=str(bpe), test_fraction=0.2)
    assert len(list(folder.glob('*.mask.bin'))) == 3
    prepare(tokenizer=str(bpe), val_fraction=0.3)
    assert not list(folder.glob('*.mask.bin'))
    assert open_mask('tales', 'train', open_tokens('tales', 'train')) is None


@pytest.mark.parametrize('fault', ['other', 'short', 'missing', 'of another dataset'])
def test_a_mask_that_does_not_belong_to_its_tokens_is_refused(bpe, fault):
    path = prepare_pairs(PAIRS, tokenizer=str(bpe)) / 'train.mask.bin'
    mask = np.fromfile(path, np.uint8)
    if fault == 'other':
        (1 - mask).tofile(path)
    elif fault == 'short':
        mask[:-1].tofile(path)
    elif fault == 'missing':
        path.unlink()
    else:
        prepare(tokenizer=str(bpe), val_fraction=0.3)
        np.ones(len(ids_of(path.parent, 'train')), np.uint8).tofile(path)
    with pytest.raises(UserError, match=r'train\.mask\.bin\b.*: make the dataset again with prepare_bin\.py'):
        open_mask('tales', 'train', open_tokens('tales', 'train'))


def test_a_mask_of_ones_own_may_stand_beside_tokens_without_a_meta_json():
    Path('data/mine').mkdir(parents=True)
    np.arange(9, dtype=np.uint16).tofile('data/mine/train.bin')
    np.array([0, 0, 1], np.uint8).tofile('data/mine/train.mask.bin')
    tokens = open_tokens('mine', 'train')
    with pytest.raises(UserError, match=r'3 bytes, but train\.bin has 9'):
        open_mask('mine', 'train', tokens)
    np.arange(9, dtype=np.uint8).tofile('data/mine/train.mask.bin')
    assert open_mask('mine', 'train', tokens)[:].tolist() == list(range(9))
