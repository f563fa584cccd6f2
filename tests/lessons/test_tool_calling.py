"""lessons/tools.py and lessons/chat.py: the loop of calls and results, against a server of both APIs."""

import re
import sys
from typing import Literal

import pytest
from helpers.chat_server import cut, results_in, run_server, says
from helpers.problems import sample_problems
from helpers.scripts import run_lesson
from matplotlib.image import imread

import configurator
from common.errors import UserError
from lessons import arithmetic, players, tools
from lessons.arithmetic import evaluate_arithmetic
from lessons.chat import connect_provider
from lessons.players import make_writing_player
from lessons.problems import calculate
from lessons.tools import answer_with_tools, describe_function


@pytest.fixture
def server(monkeypatch):
    """A server of both APIs, and a key for each."""
    monkeypatch.setenv('OPENAI_API_KEY', 'key-1')
    monkeypatch.setenv('ANTHROPIC_API_KEY', 'key-1')
    with run_server() as server:
        yield server


def fail(kind: Literal['value', 'key']) -> str:
    """Fail."""
    raise {'value': ValueError('too blue'), 'key': KeyError('x')}[kind]


both = pytest.mark.parametrize('provider', ['openai', 'anthropic'])
streaming = pytest.mark.parametrize('stream', [False, True], ids=['whole', 'stream'])


def conversation(server, provider, stream, script, question='How much?', functions=(calculate, fail), **settings):
    """Run the loop against the server; return (answer, pieces of text, results)."""
    server.script, said, watched = script, [], []
    with connect_provider(provider, 'm', server.url(provider)) as begin:
        chat = begin(on_text=said.append if stream else None)
        return answer_with_tools(chat, question, list(functions), on_results=watched.extend, **settings), said, watched


# Loops ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@both
@streaming
def test_an_answer_without_calls(server, provider, stream):
    text, said, watched = conversation(server, provider, stream, [says('Nothing is free: ü⏎')])
    assert text == 'Nothing is free: ü⏎'
    assert said == (cut(text) if stream else [])
    assert watched == []
    (body,) = server.bodies
    assert body['messages'] == [{'role': 'user', 'content': 'How much?'}]
    assert body['model'] == 'm' and body.get('stream', False) == stream
    assert server.keys == ['key-1']
    tool = body['tools'][0] if provider == 'anthropic' else body['tools'][0]['function']
    schema = tool['input_schema' if provider == 'anthropic' else 'parameters']
    assert tool['name'] == 'calculate' and schema == describe_function(calculate)['parameters']


@pytest.mark.slow
@both
@streaming
def test_parallel_calls_are_answered_together_and_in_order(server, provider, stream):
    calls = [(f'call_{n}', 'calculate', {'expression': f'{n} * (3 + {n})'}) for n in range(1, 4)]
    script = [says('Let me see.', *calls), says('', ('call_9', 'calculate', {'expression': '6 * 7'})), says('42.')]
    text, said, watched = conversation(server, provider, stream, script)
    assert text == '42.'
    assert ''.join(said) == ('Let me see.42.' if stream else '')
    second, third = server.bodies[1:]
    results = results_in(second)
    assert [id for id, _, _ in results] == ['call_1', 'call_2', 'call_3']
    assert [text for _, text, _ in results] == [str(n * (3 + n)) for n in range(1, 4)]
    assert results_in(third) == [('call_9', '42', False if provider == 'anthropic' else None)]
    assert [result.text for result in watched] == ['4', '10', '18', '42']
    assert third['messages'][: len(second['messages'])] == second['messages']  # all that was said is sent again


@both
@streaming
def test_errors_go_back_to_the_model(server, provider, stream):
    script = [
        says(
            '',
            ('a', 'look_up', {'word': 'x'}),
            ('b', 'calculate', {'expresion': '1 + 1'}),
            ('c', 'fail', {'kind': 'value'}),
            ('d', 'calculate', {'expression': '1 + 1'}),
        ),
        says('2'),
    ]
    text, _, watched = conversation(server, provider, stream, script)
    assert text == '2'
    results = {id: (text, is_error) for id, text, is_error in results_in(server.bodies[1])}
    assert list(results) == ['a', 'b', 'c', 'd']
    words = {'a': 'there is no function look_up', 'b': "'expression' is a required", 'c': 'too blue', 'd': '2'}
    for id, word in words.items():
        assert word in results[id][0]
        assert results[id][1] == (None if provider == 'openai' else id != 'd')
    assert [result.is_error for result in watched] == [True, True, True, False]


@streaming
def test_broken_json_goes_back_to_the_model(server, stream):
    script = [says('', ('a', 'calculate', '{"expression": "1 +'), ('b', 'calculate', '')), says('Sorry.')]
    text, _, _ = conversation(server, 'openai', stream, script)
    assert text == 'Sorry.'
    (_, first, _), (_, second, _) = results_in(server.bodies[1])
    assert 'JSONDecodeError' in first and 'required' in second


@both
@streaming
def test_the_turn_limit(server, provider, stream):
    made = []

    def count() -> int:
        made.append(1)
        return len(made)

    forever = [says('', (f'call_{n}', 'count', {})) for n in range(9)]
    with pytest.raises(UserError, match='no answer in 3 replies'):
        conversation(server, provider, stream, list(forever), functions=[count], max_turns=3)
    assert len(server.bodies) == 3
    assert len(made) == 2  # the last call would have been for nobody
    text, _, _ = conversation(server, provider, stream, [*forever[:2], says('two')], functions=[count], max_turns=3)
    assert text == 'two'


@both
@streaming
def test_a_reply_that_was_cut_off_is_an_error(server, provider, stream):
    made = []

    def note(text: str) -> None:
        made.append(text)

    for reply in (says('The answer is', reason='length'), says('', ('a', 'note', {'text': 'half'}), reason='length')):
        with pytest.raises(UserError, match='was cut off'):
            conversation(server, provider, stream, [reply], functions=[note])
    assert made == []


@both
@streaming
def test_a_second_question_continues_the_conversation(server, provider, stream):
    server.script = [says('', ('a', 'calculate', {'expression': '1 + 1'})), says('two'), says('three')]
    with connect_provider(provider, 'm', server.url(provider)) as begin:
        chat = begin(on_text=(lambda piece: None) if stream else None)
        assert answer_with_tools(chat, 'one and one?', [calculate]) == 'two'
        assert answer_with_tools(chat, 'and one more?', []) == 'three'
    first, *_, answer, second = server.bodies[2]['messages']
    assert (first['content'], second['content']) == ('one and one?', 'and one more?')
    assert answer['role'] == 'assistant' and 'two' in str(answer['content'])
    assert 'tools' not in server.bodies[2]


@both
@streaming
def test_refused_requests_are_reported(server, provider, stream):
    with pytest.raises(
        UserError, match=rf'{provider} \(m at http://127.0.0.1:\d+.*not today.*check {provider.upper()}_API_KEY'
    ):
        conversation(server, provider, stream, [401])


@both
def test_a_broken_stream_is_reported(server, provider):
    with pytest.raises(UserError, match=provider):
        conversation(server, provider, True, ['half a stream'])


@both
def test_a_missing_server_is_reported(provider, monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', 'key-1')
    monkeypatch.setenv('ANTHROPIC_API_KEY', 'key-1')
    with (
        pytest.raises(UserError, match=f'{provider}.*[Cc]onnection'),
        connect_provider(provider, None, 'http://127.0.0.1:9') as begin,
    ):
        chat = begin()
        chat.client = chat.client.with_options(max_retries=0)
        answer_with_tools(chat, 'hello?', [])


@both
def test_a_missing_library_is_reported_with_what_to_install(provider, monkeypatch):
    monkeypatch.setitem(sys.modules, provider, None)
    with pytest.raises(UserError, match=f'pip install {provider}=='), connect_provider(provider):
        pass


@both
def test_a_missing_key_is_reported(provider, monkeypatch):
    monkeypatch.delenv(f'{provider.upper()}_API_KEY', raising=False)
    with pytest.raises(UserError, match=f'set {provider.upper()}_API_KEY'), connect_provider(provider):
        pass


@pytest.mark.slow
@both
@pytest.mark.parametrize('calculator', [False, True], ids=['no calculator', 'calculator'])
def test_a_chat_model_is_scored_on_arithmetic(server, provider, calculator):
    """The server's model is right only with the calculator; without it, its answer is always 7."""

    def script(body):
        last = body['messages'][-1]['content']
        if isinstance(last, str) and last.startswith('Work out') and body.get('tools'):
            return says('', ('a', 'calculate', {'expression': re.match(r'Work out (.*?)\. The', last)[1]}))
        return says(f'So it is\n{results_in(body)[0][1]}' if body.get('tools') else 'It is 7')

    server.script = script
    problems = sample_problems([(0, 3), (3, 7)], each=5)
    with connect_provider(provider, 'm', server.url(provider)) as begin:
        answers = list(make_writing_player(begin, calculator)(problems))
    assert len(answers) == 10
    assert all(answer.value == (answer.problem.right if calculator else 7) for answer in answers)


def test_the_arithmetic_lesson_with_a_chat_model(server, tmp_path, capsys):
    url, folder = server.url('anthropic'), f'--plot_dir={tmp_path}'
    arguments = ['--provider=anthropic', f'--base_url={url}', '--problems=2', '--length=3', '--depth=1', folder]
    given = configurator.read(arithmetic.Settings, arguments)
    server.script = [says('It is 1000000.'), *[says('I cannot.')] * 4, says('On and on', reason='length')]
    arithmetic.main(given)
    out = capsys.readouterr().out
    assert 'claude-haiku-5-5' in out and 'mistakes: no answer 5, something else 1' in out
    for ending in ('.png', '.csv', '.json', '-replies.jsonl'):
        assert (tmp_path / f'arithmetic-claude-haiku-5-5{ending}').exists()
    server.script = lambda body: 401  # not asked: the answers are on disk
    arithmetic.main(given)
    assert 'mistakes: no answer 5, something else 1' in capsys.readouterr().out
    (tmp_path / 'arithmetic-claude-haiku-5-5-replies.jsonl').unlink()
    with pytest.raises(UserError, match='not today'):
        arithmetic.main(given)
    assert not (tmp_path / 'arithmetic-claude-haiku-5-5-replies.jsonl').exists()


def answer_rightly(body):
    """What a chat model that can calculate replies."""
    return says(str(calculate(re.match(r'Work out (.*?)\. The', body['messages'][0]['content'])[1])))


@pytest.mark.slow
@both
def test_answers_that_were_paid_for_are_kept_and_not_asked_again(server, provider, tmp_path, capsys):
    """The server refuses after the 20th question; the same command goes on from there."""
    given = {'provider': provider, 'base_url': server.url(provider), 'model': 'a/b:1', 'depth': 1, 'length': 4}
    given |= {'problems': 6, 'plot_dir': str(tmp_path)}
    server.script = lambda body: answer_rightly(body) if len(server.bodies) <= 20 else 401
    table = evaluate_arithmetic(**given)
    assert len(table.answers) == 20 and 'not today' in str(table.stopped)
    assert table.players['a/b:1'] == (20, 20)
    assert 'note: stopped after 20 of 30 problems' in capsys.readouterr().err
    asked, server.script = len(server.bodies), answer_rightly
    with open(tmp_path / 'arithmetic-a-b-1-replies.jsonl', 'ab') as file:  # as a damaged disk leaves it
        file.write(b'\xff\xfe\n[1]\n{"server": 1}\n')
    table = evaluate_arithmetic(**given)
    assert table.players['a/b:1'] == (30, 30) and table.stopped is None
    assert len(server.bodies) == asked + 10
    assert 'note: 20 of 30 answers are from' in capsys.readouterr().err
    assert len((tmp_path / 'arithmetic-a-b-1-replies.jsonl').read_bytes().splitlines()) == 33
    server.bodies.clear()  # another server is another player, though it calls its model the same
    assert evaluate_arithmetic(**given | {'base_url': given['base_url'] + '/'}).players['a/b:1'] == (30, 30)
    assert len(server.bodies) == 30


def test_ctrl_c_waits_for_the_answers_on_the_way(server, monkeypatch, capsys):
    """They cost money, too. No further question is sent."""
    wait, interrupts = players.wait, [KeyboardInterrupt()]

    def wait_and_interrupt(*given, **settings):
        if len(server.bodies) >= 3 and interrupts:
            raise interrupts.pop()
        return wait(*given, **settings)

    monkeypatch.setattr(players, 'wait', wait_and_interrupt)
    server.script = answer_rightly
    table = evaluate_arithmetic(provider='openai', base_url=server.url('openai'), depth=1, length=4, problems=30)
    assert 3 <= len(table.answers) == len(server.bodies) < 150
    assert isinstance(table.stopped, KeyboardInterrupt)
    assert f'stopped after {len(table.answers)} of 150 problems' in capsys.readouterr().err


@both
def test_a_server_of_ones_own_needs_no_key(server, provider, monkeypatch):
    monkeypatch.delenv(f'{provider.upper()}_API_KEY')
    text, _, _ = conversation(server, provider, False, [says('Hello.')])
    assert text == 'Hello.' and server.keys == ['none']


@pytest.mark.parametrize('url', ['localhost:9/v1', 'http://127.0.0.1:9/v1', '', 'http://127.0.0.1:99999999/v1'])
def test_a_mistyped_server_is_reported_with_its_address(server, url, monkeypatch):
    with pytest.raises(UserError) as error, connect_provider('openai', 'm', url or 'no-address') as begin:
        chat = begin()
        chat.client = chat.client.with_options(max_retries=0)
        answer_with_tools(chat, 'hello?', [])
    assert f'openai (m at {url or "no-address"})' in str(error.value)


@both
def test_a_web_page_instead_of_a_reply_is_reported(server, provider):
    with pytest.raises(UserError, match=r'did not send a reply but .*check --base_url'):
        conversation(server, provider, False, ['a web page'])


# The lesson -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_lesson_works_without_a_key(tmp_path):
    process = run_lesson('tools', cwd=tmp_path, OPENAI_API_KEY='', ANTHROPIC_API_KEY='')
    assert process.returncode == 0 and process.stderr == ''
    for words in ('"$ref": "#/$defs/Leg"', 'a script in place of a model', 'LookupError', 'wrong arguments', '3.75'):
        assert words in process.stdout
    assert '\n7 * (3 + 5) is 56, and 300 km take 3.75 hours.\n' in process.stdout


@both
@streaming
def test_the_lesson_asks_a_model(server, provider, stream, tmp_path, capsys):
    server.script = [
        says('', ('a', 'travel_time', {'legs': [{'kilometres': 90}], 'unit': 'minutes'})),
        says('It takes [bold] 67.5 minutes\x1b[2J.'),
    ]
    arguments = [
        f'--provider={provider}',
        f'--base_url={server.url(provider)}',
        f'--stream={stream}',
        '--question=When?',
        f'--plot_dir={tmp_path}',
    ]
    tools.main(configurator.read(tools.Settings, arguments))
    out = capsys.readouterr().out
    assert 'travel_time {"legs"' in out and out.count('67.5') == 2
    assert '\x1b' not in out  # a terminal would obey it
    assert f'It takes [bold] 67.5 minutes‹U+001B›[2J.\nthe conversation as a picture: {tmp_path}' in out
    assert imread(tmp_path / 'tools.png').std() > 0.01


def test_invalid_settings_are_reported():
    for arguments, word in (
        (['--max_turns=0'], '--max_turns=0'),
        (['--question=Why?'], '--provider'),
        (['--provider=somebody'], 'openai'),
    ):
        with pytest.raises(UserError, match=word):
            tools.main(configurator.read(tools.Settings, arguments))
