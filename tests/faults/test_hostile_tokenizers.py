"""Damaged and hostile tokenizers: one line, exit code 2; or a note, if only the text changes."""

import pytest

from faults import hostile_files as make
from faults.harness import assert_one_line, assert_went_well, run

MEMORY = 15 * 10**8


@pytest.fixture(scope='session')
def whole(tmp_path_factory):
    """A folder with a model folder that has nothing wrong with it."""
    folder = tmp_path_factory.mktemp('whole')
    make.make_model_folder(folder / 'model')
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
