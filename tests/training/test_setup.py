"""What a run starts from: settings, a model that fits its data, frozen layers."""

import re

import numpy as np
import pytest
import torch
from helpers.models import needs_gpt2_vocabulary, random_gpt
from helpers.training import SMALL, run, weights

import prepare_bin
from common.errors import UserError
from common.notes import forget_notes
from lm.checkpoint import load_model, save_pretrained
from lm.tokenizer import GPT2_FINGERPRINT, BPETokenizer, GPT2Tokenizer
from train import Settings
from training import setup

pytestmark = pytest.mark.usefixtures('dataset')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'n_layer': -1}, '--n_layer=-1: it must be at least 0'),
        ({'batch_size': 0}, '--batch_size=0: it must be at least 1'),
        ({'patience': 0}, '--patience=0: it must be at least 1'),
        ({'learning_rate': float('nan')}, '--learning_rate=nan: it must be at least 0'),
        ({'learning_rate': float('inf')}, '--learning_rate=inf: it must be finite'),
        ({'dropout': 1.0}, '--dropout=1.0: it must be below 1'),
        ({'beta2': 1.0}, '--beta2=1.0: it must be below 1'),
        ({'seed': 2**63}, f'--seed={2**63}: it must be below {2**63}'),
        ({'lora_rank': 4, 'freeze': 1}, '--lora_rank already freezes all weights; leave out --freeze'),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_read(change, message):
    with pytest.raises(UserError, match=f'^{re.escape(message)}$'):
        setup.check_training_settings(Settings(**{'dataset': 'none', **change}))


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({}, []),
        ({'learning_rate': 1e-5}, ['--min_lr=6e-05 is above --learning_rate=1e-05', '--min_lr=1e-06']),
        ({'max_iters': 99, 'warmup_iters': 100}, ['--warmup_iters=100, and there are 99', '--learning_rate=0.0006']),
        ({'learning_rate': 1e-5, 'max_iters': 100, 'decay_lr': False}, []),
    ],
)
def test_a_learning_rate_that_rises_or_never_gets_high_is_said(change, words, capsys):
    forget_notes()
    settings = Settings(**change)
    setup.note_learning_rate(settings, settings.max_iters)
    said = capsys.readouterr().err
    assert all(each in said for each in words)
    assert said.count('note: ') == bool(words)


def test_a_loaded_model_keeps_its_shape_and_says_which_settings_that_overrules(capsys):
    forget_notes()
    model = random_gpt(vocab_size=300, block_size=16, n_layer=2, n_head=2, n_embd=8)
    setup.note_own_shape(Settings(init_from='folder', n_layer=2, dropout=0.1, block_size=8), model)
    assert not capsys.readouterr().err
    setup.note_own_shape(Settings(init_from='folder', n_layer=3, n_embd=64, block_size=32), model)
    said = re.findall('note: --([a-z_=0-9]+)', capsys.readouterr().err)
    assert said == ['n_layer=3', 'n_embd=64', 'block_size=32']


def test_fine_tuning_starts_from_a_folder_with_its_tokenizer_a_shorter_context_and_dropout(tmp_path):
    run()
    model, tokenizer, _ = load_model('resume', device='cpu')
    save_pretrained(model, 'folder', tokenizer)
    tuned, same, checkpoint = setup.prepare_model(
        Settings(**SMALL | {'init_from': 'folder', 'block_size': 8, 'dropout': 0.2}),
        torch.device('cpu'),
    )
    assert (tuned.config.block_size, tuned.config.dropout, checkpoint) == (8, 0.2, None)
    assert {m.p for m in tuned.modules() if isinstance(m, torch.nn.Dropout)} == {0.2}
    assert same.contents == tokenizer.contents
    assert tuned.training
    run(init_from='folder', max_iters=2, out_dir='tuned')
    assert load_model('resume', 'tuned', device='cpu')[2]['iter_num'] == 2


def test_data_made_with_another_tokenizer_is_refused(tmp_path):
    run(max_iters=4)
    prepare_bin.main(prepare_bin.Settings(input='rhymes.txt', dataset='rhymes', tokenizer='char'))
    with pytest.raises(UserError, match='another tokenizer'):
        run(init_from='resume')


@pytest.mark.slow
@needs_gpt2_vocabulary
def test_gpt2_tokens_fit_a_gpt2_folder_whose_tokenizer_has_another_form():
    """prepare_bin.py takes GPT-2's vocabulary from tiktoken; a folder from the hub has it as tokenizer.json."""
    tokenizer = GPT2Tokenizer()
    assert tokenizer.fingerprint == GPT2_FINGERPRINT
    save_pretrained(random_gpt(vocab_size=50257, n_embd=8), 'folder', tokenizer)
    prepare_bin.main(prepare_bin.Settings(input='rhymes.txt', dataset='rhymes', tokenizer='gpt2'))
    run(init_from='folder', max_iters=2)
    assert isinstance(load_model('resume', device='cpu')[1], BPETokenizer)


def test_characters_prepared_by_nanogpt_are_not_mistaken_for_other_tokens(tmp_path):
    import pickle

    run(max_iters=4)
    folder = tmp_path / 'data' / 'shakespeare_char'
    folder.mkdir()
    for split in ('train', 'val'):
        (np.arange(2000, dtype=np.uint16) % 65).tofile(folder / f'{split}.bin')
    chars = {id: chr(60 + id) for id in range(65)}
    (folder / 'meta.pkl').write_bytes(pickle.dumps({'vocab_size': 65, 'itos': chars, 'stoi': {}}))
    with pytest.raises(UserError, match='another tokenizer'):
        run(init_from='out', dataset='shakespeare_char', out_dir='other')
    run(init_from='scratch', dataset='shakespeare_char', out_dir='other', max_iters=4)
    assert load_model('resume', 'other', device='cpu')[1].vocab_size == 65


@pytest.mark.parametrize(('blocks', 'untouched'), [(0, ['wte', 'wpe']), (1, ['wte', 'wpe', 'h.0.'])])
def test_frozen_parts_do_not_change_and_the_others_do(blocks, untouched):
    run(max_iters=4, out_dir='base')
    run(init_from='base', out_dir='tuned', freeze=blocks)
    before, after = weights('base'), weights('tuned')
    for name, tensor in after.items():
        frozen = name == 'lm_head.weight' or any(name.startswith(f'transformer.{part}') for part in untouched)
        assert torch.equal(tensor, before[name]) == frozen, name


def test_freezing_too_many_blocks_is_refused():
    with pytest.raises(UserError, match='--freeze=3: the model has only 2 blocks'):
        run(freeze=3)
