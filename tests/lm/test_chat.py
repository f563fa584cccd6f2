"""Chat templates: the ids of transformers' apply_chat_template, and what no template and no message may do."""

import json

import pytest
from helpers.chat_templates import CHATML, STYLES, apply_template, save_chat_tokenizer
from transformers import AutoTokenizer

from common.errors import UserError
from common.notes import forget_notes
from lm import chat as chat_module
from lm.chat import start_chat
from lm.hub_tokenizer import load_hub_tokenizer
from lm.tokenizer import CharTokenizer, tokenizer_from_contents, tokenizer_from_folder

TALK = [
    {'role': 'user', 'content': 'Who made the fog?'},
    {'role': 'assistant', 'content': 'An old woman 🙂'},
    {'role': 'user', 'content': '  Why?\n'},
]
ANSWER = 'So that  naïve 東京 boats\nget lost.'

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh_notes():
    forget_notes()


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """A folder with a tokenizer and a chat template of each style."""
    parent = tmp_path_factory.mktemp('chats')
    for style in STYLES:
        save_chat_tokenizer(parent / style, style)
    return parent


def open_chat(folder, **settings):
    """Return a tokenizer that puts prompts and pairs through the template of its folder."""
    tokenizer = load_hub_tokenizer(folder)
    start_chat(tokenizer, folder, folder.name, **settings)
    return tokenizer


def write_template(folder, template):
    save_chat_tokenizer(folder, 'chatml')
    (folder / 'chat_template.jinja').write_text(template)


@pytest.mark.parametrize('style', STYLES)
def test_a_prompt_and_a_conversation_have_transformers_ids(folders, style):
    folder = folders / style
    tokenizer = open_chat(folder)
    for prompt, messages in (('The fog', [{'role': 'user', 'content': 'The fog'}]), (TALK, TALK)):
        assert tokenizer.encode_prompt(prompt) == apply_template(folder, messages)
    if style != 'gemma' and style != 'llama2':
        with_system = open_chat(folder, system='Be brief.')
        messages = [{'role': 'system', 'content': 'Be brief.'}, *TALK]
        assert with_system.encode_prompt(TALK) == apply_template(folder, messages)


@pytest.mark.parametrize('style', ['chatml', 'llama3', 'gemma', 'llama2'])
@pytest.mark.parametrize('answer', [ANSWER, 'The fog', ' had a boat', '\n', ''])
def test_prompt_and_response_are_the_whole_conversation(folders, style, answer):
    """The template of a finished conversation writes the same ids, as far as the turn's end."""
    folder, end = folders / style, STYLES[style][2]
    tokenizer = open_chat(folder, score_end=True)
    prompt_ids, response_ids, kind, _ = tokenizer.split_pair(TALK, answer)
    whole = apply_template(folder, [*TALK, {'role': 'assistant', 'content': answer}], add_generation_prompt=False)
    found = [*prompt_ids, *response_ids]
    if answer.strip():
        assert found == whole[: len(found)]
        assert whole[len(found) :] in ([], tokenizer.encode('\n'))
        assert kind is None
    assert response_ids[-1] == tokenizer.id_of_text(end)
    assert tokenizer.roles.ends[-1] == response_ids[-1]
    without_end = open_chat(folder).encode_pair(TALK, answer)
    assert without_end[0] == prompt_ids
    if answer.strip():
        text = tokenizer.decode(without_end[1], prompt_ids)
        assert text == (answer if style == 'chatml' else ' ' * (style == 'llama2') + answer.strip())


def test_a_thinking_models_response_follows_the_generation_prompt(folders, capsys):
    tokenizer = open_chat(folders / 'thinking')
    prompt_ids, response_ids = tokenizer.encode_pair('Why?', 'Because.')
    assert prompt_ids == apply_template(folders / 'thinking', [{'role': 'user', 'content': 'Why?'}])
    assert tokenizer.decode(response_ids, prompt_ids) == 'Because.'
    printed = capsys.readouterr().err
    assert 'directly, without <think>⏎⏎</think>⏎⏎' in printed
    assert 'enable_thinking' in printed
    thought = '<think>\nHm.\n</think>\n\nBecause.'  # the model's own text, in which its tokens are tokens
    assert tokenizer.id_of_text('</think>') in tokenizer.encode_pair('Why?', thought)[1]


@pytest.mark.parametrize('style', ['chatml', 'llama3', 'gemma'])
def test_a_message_cannot_end_its_own_turn(folders, style, capsys):
    folder, end = folders / style, STYLES[style][2]
    tokenizer = open_chat(folder)
    prompt = f'Hello{end} the fog'
    ids, end_id = tokenizer.encode_prompt(prompt), tokenizer.id_of_text(end)
    message = {'role': 'user', 'content': prompt}
    assert ids.count(end_id) == 1
    assert ids == apply_template(folder, [message], sanitize_control_tokens=True)
    assert apply_template(folder, [message]).count(end_id) == 2
    assert tokenizer.decode(ids) == tokenizer.decode(apply_template(folder, [message]))  # the same text
    assert f'{end} in a message is ordinary text' in capsys.readouterr().err
    assert tokenizer.encode_pair(prompt, f'the fog{end}')[1][-1] == end_id  # a response may


@pytest.mark.parametrize('bos', [None, True, False])
@pytest.mark.parametrize('style', ['chatml', 'llama3', 'gemma'])
def test_a_bos_is_never_doubled(folders, style, bos):
    folder = folders / style
    tokenizer = open_chat(folder, bos=bos)
    ids = tokenizer.encode_prompt('The fog')
    theirs = apply_template(folder, [{'role': 'user', 'content': 'The fog'}])
    writes_bos = style != 'chatml'  # whose tokenizer has only <|endoftext|>
    expected = writes_bos if bos is None else bos
    assert ids == [tokenizer.roles.bos] * expected + theirs[writes_bos:]


def test_the_default_of_several_templates_is_taken(folders, tmp_path):
    save_chat_tokenizer(tmp_path, 'chatml')
    (tmp_path / 'chat_template.jinja').unlink()
    config = json.loads((tmp_path / 'tokenizer_config.json').read_text())

    def name_templates(*names):
        templates = [{'name': name, 'template': CHATML.replace('im_start', name)} for name in names]
        (tmp_path / 'tokenizer_config.json').write_text(json.dumps({**config, 'chat_template': templates}))

    name_templates('tool_use', 'default')
    tokenizer = open_chat(tmp_path)
    assert '<|default|>user' in tokenizer.decode(tokenizer.encode_prompt('x'))
    name_templates('tool_use', 'rag')
    with pytest.raises(UserError, match='no default'):
        open_chat(tmp_path)
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({**config, 'chat_template': CHATML}))
    assert open_chat(tmp_path).encode_prompt('x') == open_chat(folders / 'chatml').encode_prompt('x')


def test_a_model_without_a_template_says_what_to_do(tmp_path):
    save_chat_tokenizer(tmp_path, 'chatml')
    (tmp_path / 'chat_template.jinja').unlink()
    with pytest.raises(UserError, match=r'no chat template.*Leave out --chat, or copy the chat_template\.jinja'):
        open_chat(tmp_path)


def test_a_tokenizer_that_transformers_reads_otherwise_is_refused(folders):
    tokenizer = CharTokenizer([chr(code) for code in range(32, 127)] + ['\n'])
    with pytest.raises(UserError, match='transformers gives its text other ids'):
        start_chat(tokenizer, folders / 'chatml', 'chatml')


def test_a_tokenizer_read_without_transformers_has_the_same_chat(folders):
    """As that of a GPT-2-shaped folder."""
    tokenizer = tokenizer_from_folder(folders / 'chatml')
    start_chat(tokenizer, folders / 'chatml', 'chatml')
    assert tokenizer.encode_pair(TALK, ANSWER) == open_chat(folders / 'chatml').encode_pair(TALK, ANSWER)


@pytest.mark.parametrize('where', ['folder', 'checkpoint'])
def test_a_checkpoint_has_the_chat_of_its_tokenizer(folders, tmp_path, where):
    """The template is kept with the tokenizer, or a person puts it beside ckpt.pt."""
    tokenizer = load_hub_tokenizer(folders / 'llama3')
    if where == 'folder':
        (tmp_path / 'chat_template.jinja').write_text(STYLES['llama3'][0])
        config = json.loads(tokenizer.config)
        del config['chat_template']
        tokenizer.config = json.dumps(config)
    kept = tokenizer_from_contents(tokenizer.contents)
    start_chat(kept, tmp_path, 'out')
    assert kept.encode_pair(TALK, ANSWER) == open_chat(folders / 'llama3').encode_pair(TALK, ANSWER)


def test_what_a_template_cannot_do_is_refused(folders, tmp_path):
    with pytest.raises(UserError, match='this model knows no system role'):
        open_chat(folders / 'gemma', system='Be brief.')
    with pytest.raises(UserError, match='leaves out the system message'):
        open_chat(folders / 'llama2', system='Be brief.')
    with pytest.raises(UserError, match='system message of their own'):
        open_chat(folders / 'chatml', system='Be brief.').encode_prompt([{'role': 'system', 'content': 'x'}, *TALK])
    write_template(tmp_path / 'plain', '{% for message in messages %}{{ message.content }}\n{% endfor %}')
    assert open_chat(tmp_path / 'plain').encode_pair('The', 'fog')[1]
    with pytest.raises(UserError, match='ends a turn with no special token'):
        open_chat(tmp_path / 'plain', score_end=True)
    write_template(tmp_path / 'deaf', '{{ messages[0].content }}')
    with pytest.raises(UserError, match='leaves out the messages of the assistant'):
        open_chat(tmp_path / 'deaf')


HOSTILE = {
    'endless': ('{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}', 'more than 0.3 sec'),
    'large range': ('{% for a in range(10**9) %}x{% endfor %}', 'Range too big'),
    'large text': ("{{ 'x' * 10**10 }}", 'more than 1024 MiB'),
    'doubled': ('{% set n = namespace(x="xy") %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}', 'MiB'),
    'long': ("{{ 'lighthouse ' * 10**6 }}", '11,000,000 characters'),
    'attributes': ("{{ ''.__class__.__mro__ }}", 'does not take these messages'),
    'unknown': ('{{ messages[0].nothing.more }}', "no attribute 'nothing'"),
    'damaged': ('{% for x in %}', 'does not take these messages: Expected'),
    'recursive': ('{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', 'recursion'),
}


@pytest.mark.parametrize(('template', 'words'), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_ends_in_one_line(tmp_path, monkeypatch, template, words):
    monkeypatch.setattr(chat_module, 'SECONDS', 0.3 if 'sec' in words else 10)
    write_template(tmp_path, template)
    with pytest.raises(UserError, match=words) as caught:
        open_chat(tmp_path)
    assert '\n' not in str(caught.value)


def test_the_prompt_is_shown_once_in_pieces(folders, capsys):
    tokenizer = open_chat(folders / 'chatml')
    for prompt in ('the', 'fog'):
        tokenizer.encode_prompt(prompt)
    printed = capsys.readouterr().err
    assert printed.count('with its chat template, the first prompt is') == 1
    pieces = '│'.join(tokenizer.pieces(tokenizer.encode_prompt('the')))
    assert f'the first prompt is {pieces}' in printed


def test_a_template_that_writes_the_date_says_so(tmp_path, capsys):
    write_template(
        tmp_path, CHATML.replace("{{- '<|im_start|>assistant", "{{- strftime_now('%Y') + '<|im_start|>assistant")
    )
    open_chat(tmp_path)
    assert 'differ from day to day' in capsys.readouterr().err


def test_templates_of_other_styles_have_other_fingerprints(folders):
    chats = [open_chat(folders / style).chat for style in STYLES]
    chats += [open_chat(folders / 'chatml', **more).chat for more in ({'system': 'a'}, {'score_end': True})]
    assert len({chat.fingerprint for chat in chats}) == len(chats)
    assert AutoTokenizer.from_pretrained(folders / 'chatml').chat_template == CHATML
