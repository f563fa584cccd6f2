"""Damaged and hostile tokenizers, datasets and results: one line, exit code 2; or a note, if only the text changes."""

import json

import pytest

from faults import hostile_files as make
from faults.harness import assert_one_line, assert_went_well, run

MEMORY = 15 * 10**8


@pytest.fixture(scope='session')
def whole(tmp_path_factory):
    """A folder with a model folder, a dataset of its tokenizer, a run on it, and an interrupted evaluation."""
    folder = tmp_path_factory.mktemp('whole')
    make.make_model_folder(folder / 'model')
    (folder / 'text.txt').write_text('\n\n\n'.join(f'The fog {number} came up. ' * 20 for number in range(20)))
    (folder / 'pairs.jsonl').write_text('["The fog", " is here"]\n' * 1100)
    common = ('--device=cpu',)
    for command in (
        ('prepare_bin.py', '--input=text.txt', '--dataset=mine', '--tokenizer=model'),
        ('train.py', '--init_from=model', '--dataset=mine', '--out_dir=run', '--max_iters=2', '--eval_iters=1',
         '--batch_size=1', '--gradient_accumulation_steps=1', '--always_save_checkpoint=True', *common),
        ('eval.py', '--init_from=model', '--eval_data=pairs.jsonl', '--save=kept/e', '--show=1', '--resamples=10',
         *common),
    ):  # fmt: skip
        assert_went_well(run(*command, cwd=folder))
    saved = folder / 'kept' / 'e'
    (saved / 'pairs.jsonl').rename(saved / 'pairs.jsonl.part')
    return folder


def sample(folder, *more):
    return run('sample.py', '--init_from=model', '--device=cpu', '--start=The fog', '--max_new_tokens=3', *more,
               cwd=folder, seconds=30, memory=MEMORY)  # fmt: skip


# Tokenizers -----------------------------------------------------------------------------------------------------------

REFUSED = {
    'nested': (make.write('tokenizer.json', make.DEEP), ['tokenizer.json', 'nested too deeply']),
    'a list': (make.write('tokenizer.json', '[]'), ['tokenizer.json']),
    'empty': (make.write('tokenizer.json', ''), ['tokenizer.json', 'not JSON']),
    'half': (make.cut('tokenizer.json'), ['tokenizer.json', 'not JSON']),
    'no model': (make.set_tokenizer(model=None), ['tokenizer.json']),
    'no type': (make.set_tokenizer(model__type=5), ['tokenizer.json']),
    'a charsmap that cannot be parsed': (make.set_tokenizer(normalizer=make.charsmap(b'\xff' * 9)), ['charsmap']),
    'a charsmap out of bounds': (
        make.set_tokenizer(normalizer=make.charsmap(b'\x08\0\0\0' + b'\xff' * 8)),
        ['tokenizers library failed'],
    ),
    'continuing_subword_prefix': (make.set_tokenizer(model__continuing_subword_prefix='##'), ['library failed']),
    'a long continuing_subword_prefix': (make.set_tokenizer(model__continuing_subword_prefix='#' * 99), ['failed']),
    'a runaway pattern': (
        make.set_tokenizer(pre_tokenizer=make.split_by(r'(\w|\s|[^x])+$(?<=qqq)')),
        ['takes too long'],
    ),
    'a pattern that is none': (make.set_tokenizer(pre_tokenizer=make.split_by('((')), ['tokenizer.json']),
    'a replacement of nothing': (
        make.set_tokenizer(normalizer={'type': 'Replace', 'pattern': {'String': ''}, 'content': 'b'}),
        ['library failed'],
    ),
    'dropout of 2': (make.set_tokenizer(model__dropout=2), ['Dropout should be between 0 and 1']),
    'two tokens of one id': (make.edit_json('tokenizer.json', make.give_same_id), ['two of its tokens have the id']),
    'id 2**32 - 1': (make.edit_json('tokenizer.json', make.move_last_id(2**32 - 1)), ['has the id 4,294,967,295']),
    'id 2**32': (make.edit_json('tokenizer.json', make.move_last_id(2**32)), ['4294967296']),
    'id -1': (make.edit_json('tokenizer.json', make.move_last_id(-1)), ['tokenizer.json']),
    'an id that is text': (make.edit_json('tokenizer.json', make.move_last_id('x')), ['tokenizer.json']),
    'no vocabulary': (make.set_tokenizer(model__vocab={}, model__merges=[], added_tokens=[]), ['vocabulary is empty']),
    'a lone surrogate': (
        make.edit_json('tokenizer.json', lambda c: c['model']['vocab'].update({'\ud800': 5})),
        ['json'],
    ),
    'a list of characters, one twice': (
        make.write('tokenizer.json', '{"model": {"type": "WordLevel", "vocab": {"ab": 0, "b": 1}}}'),
        ['single characters'],
    ),
    'vocab.json empty': (make.as_vocab_and_merges(vocab='{}', merges=''), ['vocabulary is empty']),
    'vocab.json of text': (make.as_vocab_and_merges(vocab='{"a": "b"}'), ['as a BPE']),
    'vocab.json a list': (make.as_vocab_and_merges(vocab='["a"]'), ['holds a list']),
    'vocab.json nested': (make.as_vocab_and_merges(vocab=make.DEEP), ['nested too deeply']),
    'vocab.json a surrogate': (make.as_vocab_and_merges(vocab='{"\\ud800": 0}'), ['as a BPE']),
    'merges.txt of other tokens': (make.as_vocab_and_merges(merges='q q\nzz zz\n'), ['as a BPE']),
    'merges.txt binary': (make.as_vocab_and_merges(merges='\0\0\0'), ['as a BPE']),
    'meta.json nested': (make.write('meta.json', make.DEEP), ['meta.json', 'nested too deeply']),
    'meta.json of another kind': (make.write('meta.json', '{"tokenizer": {"kind": []}}'), ['unknown kind']),
    'meta.json without tokenizer': (make.write('meta.json', '{}'), ['meta.json', 'tokenizer']),
    'characters.json nested': (make.write('characters.json', make.DEEP), ['nested too deeply']),
    'meta.pkl of code': (make.write('meta.pkl', b'cos\nsystem\n(S"x"\ntR.'), ['never executed']),
    'meta.pkl nested': (make.write('meta.pkl', b'\x80\x02' + b']' * 10**5 + b'a' * (10**5 - 1) + b'.'), ['meta.pkl']),
    'meta.pkl a pipe': (make.replace('meta.pkl', 'pipe'), ['it is a pipe']),
}


@pytest.mark.situation('damaged or hostile tokenizer')
@pytest.mark.parametrize('name', REFUSED)
def test_a_damaged_tokenizer(whole, tmp_path, name):
    folder = make.copy_tree(whole / 'model', tmp_path / 'model')
    spoil, words = REFUSED[name]
    if name.startswith(('meta.', 'characters.')):
        (folder / 'tokenizer.json').unlink()
    spoil(folder)
    assert_one_line(sample(tmp_path), *words)


CHANGED = {
    'lower case': (make.set_tokenizer(normalizer={'type': 'Lowercase'}), 'becomes "once upon a time'),
    'NFKC': (make.set_tokenizer(normalizer={'type': 'NFKC'}), 'becomes "café café fine'),
    'without accents': (make.set_tokenizer(normalizer={'type': 'StripAccents'}), 'changes texts'),
    'a space before': (make.set_tokenizer(pre_tokenizer__add_prefix_space=True), 'becomes " Once'),
    'a space before, as another file says': (
        make.change_json('tokenizer_config.json', add_prefix_space=True, tokenizer_class='GPT2Tokenizer'),
        'tokenizer_config.json puts space before each text',
    ),
    'end_of_word_suffix': (make.set_tokenizer(model__end_of_word_suffix='</w>'), 'changes texts'),
    'dropout': (make.set_tokenizer(model__dropout=0.5), 'BPE dropout of 0.5'),
    'half of the merges': (
        make.edit_json('tokenizer.json', lambda c: c['model'].update(merges=c['model']['merges'][:50])),
        'the result of no merge',
    ),
}


@pytest.mark.situation('tokenizer that changes texts')
@pytest.mark.parametrize('name', CHANGED)
def test_a_tokenizer_that_changes_texts_says_so_and_is_the_same_each_time(whole, tmp_path, name):
    spoil, words = CHANGED[name]
    spoil(make.copy_tree(whole / 'model', tmp_path / 'model'))
    first, second = (sample(tmp_path, '--fixed_response= Is HERE') for _ in range(2))
    assert_went_well(first)
    assert words in first.err
    assert (first.out, first.err) == (second.out, second.err)


# Datasets, runs and evaluations ---------------------------------------------------------------------------------------

TRAIN = ('train.py', '--init_from=model', '--dataset=mine', '--out_dir=o', '--max_iters=1', '--device=cpu')
RESUME = ('train.py', '--init_from=resume', '--dataset=mine', '--out_dir=run', '--max_iters=3', '--device=cpu',
          '--batch_size=1', '--gradient_accumulation_steps=1', '--eval_iters=1')  # fmt: skip
EVAL = ('eval.py', '--init_from=model', '--eval_data=pairs.jsonl', '--save=kept/e', '--resume_eval=True',
        '--show=1', '--resamples=10', '--device=cpu')  # fmt: skip
META, LAST, KEPT = 'data/mine/meta.json', 'run/last.pt', 'kept/e/summary.json'


def forget_moments(checkpoint):
    checkpoint['optimizer']['state'] = {}


def set_group(**values):
    """Return a maker that sets entries of the optimizer's settings."""
    return make.change_checkpoint(lambda checkpoint: checkpoint['optimizer']['param_groups'][0].update(values), LAST)


def drop_group(checkpoint):
    checkpoint['optimizer']['param_groups'].pop()


def forget_eps(checkpoint):
    del checkpoint['optimizer']['param_groups'][0]['eps']


def set_moments(change):
    """Return a maker that puts change(tensor) in place of a running mean."""

    def edit(checkpoint):
        state = checkpoint['optimizer']['state'][0]
        state['exp_avg'] = change(state['exp_avg'])

    return make.change_checkpoint(edit, LAST)


FOLDERS = {
    'meta.json nested': (TRAIN, make.write(META, make.DEEP), ['meta.json']),
    'meta.json a list': (TRAIN, make.write(META, '[1]'), ['meta.json']),
    **{
        f'dtype {value!r}': (TRAIN, make.change_json(META, dtype=value), ['meta.json', 'dtype'])
        for value in ('int16', 'nonsense', 'O', ['uint16'], {}, 'float32', 16)
    },
    'train.bin a folder': (TRAIN, make.replace('data/mine/train.bin', 'folder'), ['train.bin']),
    'train.bin a pipe': (TRAIN, make.replace('data/mine/train.bin', 'pipe'), ['train.bin']),
    'val.bin a device': (TRAIN, make.replace('data/mine/val.bin', 'device'), ['val.bin']),
    'iter_num text': (RESUME, make.change_checkpoint(lambda c: {**c, 'iter_num': 'x'}, LAST), ['cannot be resumed']),
    'iter_num -5': (RESUME, make.change_checkpoint(lambda c: {**c, 'iter_num': -5}, LAST), ['cannot be resumed']),
    'loss of None': (
        RESUME,
        make.change_checkpoint(lambda c: {**c, 'best_val_loss': None}, LAST),
        ['cannot be resumed'],
    ),
    'optimizer a list': (
        RESUME,
        make.change_checkpoint(lambda c: {**c, 'optimizer': [1]}, LAST),
        ['cannot be resumed'],
    ),
    'optimizer empty': (RESUME, make.change_checkpoint(lambda c: {**c, 'optimizer': {}}, LAST), ['cannot be resumed']),
    'no moments': (RESUME, make.change_checkpoint(forget_moments, LAST), ['cannot be resumed', 'the state of 0 of']),
    **{
        f'moments {name}': (RESUME, set_moments(change), ['cannot be resumed', words])
        for name, (change, words) in {
            'of another shape': (lambda tensor: tensor[:3], 'exp_avg of the optimizer'),
            'that are one number': (lambda tensor: tensor[:1, :1].expand(tensor.shape), 'exp_avg of the optimizer'),
            'sparse': (lambda tensor: tensor.to_sparse(), 'exp_avg of the optimizer'),
            'without numbers': (lambda tensor: tensor.to('meta'), 'meta'),
            'of text': (lambda tensor: 'x', 'exp_avg of the optimizer'),
        }.items()
    },
    **{
        f'{name}={value!r}': (RESUME, set_group(**{name: value}), ['cannot be resumed', words])
        for name, value, words in [
            ('betas', 'ab', "beta1 of the optimizer is 'a'"),
            ('betas', (0.9, 1.0), 'beta2 of the optimizer is 1.0'),
            ('betas', 5, 'TypeError'),
            ('eps', float('nan'), 'eps of the optimizer is nan'),
            ('weight_decay', None, 'weight_decay of the optimizer is None'),
            ('maximize', True, 'maximize of the optimizer is True'),
            ('amsgrad', 'x', "amsgrad of the optimizer is 'x'"),
            ('params', 'x', 'cannot be resumed'),
        ]
    },
    'no eps': (RESUME, make.change_checkpoint(forget_eps, LAST), ['cannot be resumed', 'eps']),
    'a group less': (RESUME, make.change_checkpoint(drop_group, LAST), ['cannot be resumed']),
    'last.pt a pipe': (RESUME, make.replace(LAST, 'pipe'), ['last.pt', 'it is a pipe']),
    'metrics.jsonl a pipe': (RESUME, make.replace('run/metrics.jsonl', 'pipe'), ['metrics.jsonl', 'it is a pipe']),
    'summary.json nested': (EVAL, make.write(KEPT, make.DEEP), ['no readable summary.json', 'nested too deeply']),
    'summary.json a list': (EVAL, make.write(KEPT, '[]'), ['no readable summary.json', 'holds a list']),
    'summary.json of something else': (EVAL, make.write(KEPT, '{"settings": 5}'), ['no readable summary.json']),
    'summary.json a pipe': (EVAL, make.replace(KEPT, 'pipe'), ['no readable summary.json', 'it is a pipe']),
    'kept rows a folder': (
        EVAL,
        make.replace(f'{KEPT[:-12]}pairs.jsonl.part', 'folder'),
        ['pairs.jsonl.part', 'a folder'],
    ),
    'a row without its numbers': (EVAL, lambda folder: spoil_row(folder, b'{"index": 3}'), ['a row that it keeps']),
}


@pytest.mark.situation('damaged dataset, run or evaluation')
@pytest.mark.parametrize('name', FOLDERS)
def test_a_damaged_folder(whole, tmp_path, name):
    command, spoil, words = FOLDERS[name]
    folder = make.copy_tree(whole, tmp_path / 'copy')
    spoil(folder)
    assert_one_line(run(*command, cwd=folder, seconds=30, memory=MEMORY), *words)


def spoil_row(folder, line, number=3):
    """Replace a row of an interrupted evaluation."""
    path = folder / 'kept' / 'e' / 'pairs.jsonl.part'
    lines = path.read_bytes().splitlines()
    lines[number] = line
    path.write_bytes(b'\n'.join(lines) + b'\n')


BAD_LINES = {
    'text': b'hello',
    'nested': b'[' * 200_000,
    'a list': b'[1]',
    'no index': b'{"logprob": 1}',
    'index of text': b'{"index": "7"}',
    'an earlier index': b'{"index": 1}',
    'zeros': bytes(500),
    'latin-1': b'{"index": 700, "a": "\xe9"}',
    'NaN': b'{"index": 700, "logprob": NaN}',
}


@pytest.mark.situation('damaged row of an interrupted evaluation')
@pytest.mark.parametrize('name', BAD_LINES)
def test_a_damaged_row_is_scored_again(whole, tmp_path, name):
    folder = make.copy_tree(whole, tmp_path / 'copy')
    before = (folder / 'kept' / 'e' / 'pairs.jsonl.part').read_text(encoding='utf-8')
    spoil_row(folder, BAD_LINES[name], number=700)
    outcome = run(*EVAL, cwd=folder, seconds=60)
    assert_went_well(outcome)
    assert 'line 701 is damaged' in outcome.err
    after = (folder / 'kept' / 'e' / 'pairs.jsonl').read_text(encoding='utf-8')
    assert [json.loads(line)['index'] for line in after.splitlines()] == list(range(1100))
    assert json.loads(after.splitlines()[700])['logprob'] == pytest.approx(
        json.loads(before.splitlines()[700])['logprob']
    )
