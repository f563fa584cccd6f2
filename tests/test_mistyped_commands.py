"""What people type who come from other programs, from slides or from a word processor, and the hint that they get."""

import shlex
from pathlib import Path

import pytest
from helpers.world import MAIN

import configurator
from common.errors import UserError
from common.notes import forget_notes
from lm.settings import choose_model, read_prompt
from pictures.attention import AttentionSettings
from texts.token_files import open_tokens

SETTINGS = {script: settings for script, (_, settings) in MAIN.items()} | {'visualize.py': AttentionSettings}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forget_notes()
    Path('pairs.json').write_text('[{"prompt": "Once", "response": " upon"}]')
    Path('story.txt').write_text('Once')


def read(command):
    script, *arguments = shlex.split(command)
    return configurator.read(SETTINGS[script], arguments)


@pytest.mark.parametrize(
    ('command', 'hint'),
    [
        # names of other programs
        ('sample.py --temp 0.8', 'did you mean temperature?'),
        ('sample.py --prompt "Once upon a time"', 'did you mean start?'),
        ('sample.py -p "Once upon a time"', 'did you mean start?'),
        ('sample.py -m models/tiny -n 20', 'did you mean init_from?'),
        ('sample.py -n 128', 'did you mean max_new_tokens?'),
        ('sample.py --length=50', 'did you mean max_new_tokens?'),
        ('sample.py --num_beams=5', 'did you mean beam_width?'),
        ('sample.py --model_name_or_path=gpt2', 'did you mean init_from?'),
        ('sample.py --eta_cutoff=0.1', '--help lists all settings'),
        ('sample.py --stream', '--help lists all settings'),
        ('sample.py --eval_data=pairs.json', '--help lists all settings'),
        ('sample.py --MAX_NEW_TOKENS=3', 'did you mean max_new_tokens?'),
        ('sample.py --no_show_probs', 'did you mean show_probs=False?'),
        ('train.py --lr=0.001', 'did you mean learning_rate?'),
        ('train.py --input=story.txt', 'did you mean dataset?'),
        ('train.py --config=config/train_tiny.py', 'a config file is named alone'),
        ('prepare_bin.py --vocab_size=500', 'did you mean train_bpe?'),
        ('eval.py --file=pairs.json', 'did you mean eval_data?'),
        # dashes, spaces and quotation marks
        ('sample.py -temperature=0.5', 'did you mean --temperature=0.5?'),
        ('sample.py –-temperature=0.5', 'did you mean --temperature=0.5?'),
        ('sample.py —temperature=0.5', 'did you mean --temperature=0.5?'),
        ('sample.py “--start=Once”', 'did you mean --start=Once?'),
        ('sample.py temperature=0.5', 'did you mean --temperature=0.5?'),
        ('sample.py --temperature = 0.5', 'write it without a space: --temperature=0.5'),
        ('sample.py --temperature= 0.5', 'write it without a space: --temperature=0.5'),
        ('sample.py --start=Once upon a time', 'several words need quotation marks, as in --start="Once upon"'),
        ('sample.py --start=“Once upon a time”', '“ and ” are not quotation marks for a shell'),
        # a text or a file alone
        ('sample.py "Once upon a time"', 'did you mean --start="Once upon a time"?'),
        (f'sample.py "{"Once upon a time " * 30}"', 'did you mean --start="Once upon a time'),
        ('sample.py story.txt', 'did you mean --start=FILE:story.txt?'),
        ('sample.py --start=FILE: story.txt', 'did you mean --start=FILE:story.txt?'),
        ('sample.py help', '--help lists them'),
        ('sample.py ""', "'' is neither a setting nor a config file"),
        ('eval.py pairs.json', 'did you mean --eval_data=pairs.json?'),
        ('eval.py story.txt', 'did you mean --text=story.txt?'),
        ('eval.py tiny gpt2', 'did you mean --init_from=tiny?'),
        ('prepare_bin.py story.txt', 'did you mean --input=story.txt --dataset=story?'),
        ('prepare_bin.py --input=story.txt --dataset=my data', '--dataset="my data"'),
        ('train.py story.txt', 'first: python prepare_bin.py --input=story.txt --dataset=story'),
        ('train.py train_tiny', 'did you mean config/train_tiny.py?'),
        ('train.py config/finetune_story.py', 'did you mean config/finetune_stories.py'),
        ('visualize.py hello', 'did you mean --start="hello"?'),
        # values
        ('sample.py --temperature=0,5', 'it must be float (a number, such as 0.5)'),
        ('sample.py --num_samples=1e1', 'it must be int (a whole number, such as 10)'),
        ('sample.py --html=maybe', 'it must be bool (True or False)'),
    ],
)
def test_a_mistyped_command_gets_the_right_one(command, hint):
    with pytest.raises(UserError) as refused:
        read(command)
    assert hint in str(refused.value)


@pytest.mark.parametrize('word', ['yes', 'Yes', 'on', '1', 'true'])
def test_yes_turns_a_switch_on(word):
    assert read(f'sample.py --html={word}').html
    assert read(f'sample.py --html {word}').html
    assert read('sample.py --html=no').html is False


@pytest.mark.parametrize('word', ['none', 'None', 'null'])
def test_none_in_any_case_is_none_for_a_number_and_a_word_for_a_text(word):
    assert read(f'sample.py --top_k={word}').top_k is None
    assert read('sample.py --fixed_response=none').fixed_response == 'none'


def test_quotation_marks_of_a_word_processor_are_pointed_out(capsys):
    assert read('sample.py --start=“Once”').start == '“Once”'
    assert 'the quotation marks of --start=“Once” are part of the text' in capsys.readouterr().err


@pytest.mark.parametrize('start', ['story.txt', 'file:story.txt', '@story.txt'])
def test_the_name_of_a_file_as_a_prompt_is_pointed_out(start, capsys):
    assert read_prompt(start) == start
    assert f"the prompt is '{start}' itself; to read that file: --start=FILE:story.txt" in capsys.readouterr().err


def test_a_prompt_may_be_longer_than_any_name_of_a_file(capsys):
    assert read_prompt('x' * 10_000) == 'x' * 10_000
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('content', ['', '\ufeff', '\n', ' \n'])
def test_a_prompt_from_an_empty_file_is_pointed_out(content, capsys):
    Path('empty.txt').write_text(content, encoding='utf-8')
    assert read_prompt('FILE:empty.txt').strip() == ''
    assert 'empty.txt is empty' in capsys.readouterr().err


def test_a_variable_that_is_not_set_does_not_mean_the_shipped_model():
    assert choose_model(read('sample.py --init_from=')).init_from == ''  # --init_from=$MODEL


def test_a_config_file_of_nanogpt_that_is_not_here_gets_those_that_are():
    with pytest.raises(
        UserError, match=r'train_shakespeare_char\.py: No such file; did you mean config/.*train_tiny\.py'
    ):
        read('train.py config/train_shakespeare_char.py')


def test_a_text_named_as_the_dataset_is_how_the_dataset_is_made():
    with pytest.raises(UserError, match=r'prepare_bin\.py --input=story\.txt --dataset=story$'):
        open_tokens('story.txt', 'train')
