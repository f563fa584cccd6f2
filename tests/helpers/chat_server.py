"""A server that speaks the chat APIs of OpenAI and Anthropic, and replies as a script says."""

import http.server
import itertools
import json
import threading
from contextlib import contextmanager

from jsonschema import Draft202012Validator


def openai_shape(reply, stream):
    """Return what /v1/chat/completions sends: a chat.completion, or the chunks of one."""
    calls = [
        {'id': id, 'type': 'function', 'function': {'name': name, 'arguments': arguments}}
        for id, name, arguments in reply['calls']
    ]
    reason = reply['reason'] or ('tool_calls' if calls else 'stop')
    head = {'id': 'chatcmpl-1', 'created': 1, 'model': 'm', 'object': 'chat.completion'}
    usage = {'prompt_tokens': 5, 'completion_tokens': 7, 'total_tokens': 12}
    if not stream:
        message = {'role': 'assistant', 'content': reply['text'] or None, 'refusal': None, 'annotations': []}
        message |= {'tool_calls': calls} if calls else {}
        choice = {'index': 0, 'message': message, 'logprobs': None, 'finish_reason': reason}
        return {**head, 'choices': [choice], 'usage': usage}
    deltas = [{'role': 'assistant', 'content': None if calls else '', 'refusal': None}]
    deltas += [{'content': piece} for piece in cut(reply['text'])]
    for index, call in enumerate(calls):
        deltas.append({'tool_calls': [{'index': index, **call, 'function': {**call['function'], 'arguments': ''}}]})
    pieces = [cut(call['function']['arguments']) for call in calls]
    for row in itertools.zip_longest(*pieces):  # parallel calls interleaved: only their index tells them apart
        for index, piece in enumerate(row):
            if piece is not None:
                deltas.append({'tool_calls': [{'index': index, 'function': {'arguments': piece}}]})
    chunks = [{'index': 0, 'delta': delta, 'logprobs': None, 'finish_reason': None} for delta in deltas]
    chunks.append({'index': 0, 'delta': {}, 'logprobs': None, 'finish_reason': reason})
    head['object'] = 'chat.completion.chunk'
    return [
        *((None, {**head, 'choices': [chunk]}) for chunk in chunks),
        *[(None, {**head, 'choices': [], 'usage': usage}), (None, '[DONE]')],
    ]


def anthropic_shape(reply, stream):
    """Return what /v1/messages sends: a message, or the events of one."""
    blocks = [{'type': 'thinking', 'thinking': 'Hm.', 'signature': 'c2lnbmVk'}]
    blocks += [{'type': 'text', 'text': reply['text']}] if reply['text'] else []
    blocks += [
        {'type': 'tool_use', 'id': id, 'name': name, 'input': json.loads(arguments)}
        for id, name, arguments in reply['calls']
    ]
    reason = {'length': 'max_tokens', None: 'tool_use' if reply['calls'] else 'end_turn'}[reply['reason']]
    message = {'id': 'msg_1', 'type': 'message', 'role': 'assistant', 'model': 'm', 'content': blocks}
    message |= {'stop_reason': reason, 'stop_sequence': None, 'usage': {'input_tokens': 5, 'output_tokens': 7}}
    if not stream:
        return message
    events = [{'type': 'message_start', 'message': {**message, 'content': [], 'stop_reason': None}}, {'type': 'ping'}]
    for index, block in enumerate(blocks):
        empty = {'thinking': {'thinking': '', 'signature': ''}, 'text': {'text': ''}, 'tool_use': {'input': {}}}
        start = block | empty[block['type']]
        if block['type'] == 'thinking':
            deltas = [{'type': 'thinking_delta', 'thinking': piece} for piece in cut(block['thinking'])]
            deltas.append({'type': 'signature_delta', 'signature': block['signature']})
        elif block['type'] == 'text':
            deltas = [{'type': 'text_delta', 'text': piece} for piece in cut(block['text'])]
        else:
            pieces = ['', *cut(json.dumps(block['input']))]
            deltas = [{'type': 'input_json_delta', 'partial_json': piece} for piece in pieces]
        events.append({'type': 'content_block_start', 'index': index, 'content_block': start})
        events += [{'type': 'content_block_delta', 'index': index, 'delta': delta} for delta in deltas]
        events.append({'type': 'content_block_stop', 'index': index})
    delta = {'stop_reason': reason, 'stop_sequence': None}
    events += [{'type': 'message_delta', 'delta': delta, 'usage': {'output_tokens': 7}}, {'type': 'message_stop'}]
    return [(event['type'], event) for event in events]


def cut(text, size=3):
    return [text[start : start + size] for start in range(0, len(text), size)]


def check_openai(body):
    """Raise AssertionError where OpenAI would answer 400."""
    assert body.keys() <= {'model', 'messages', 'max_completion_tokens', 'tools', 'stream'}
    waiting = []
    for message in body['messages']:
        if message['role'] == 'tool':
            assert message.keys() == {'role', 'tool_call_id', 'content'} and isinstance(message['content'], str)
            waiting.remove(message['tool_call_id'])
            continue
        assert not waiting, 'tool_calls must be followed by an answer to each'
        assert message.keys() <= {'role', 'content', 'tool_calls'}
        for call in message.get('tool_calls', []):
            assert call.keys() == {'id', 'type', 'function'} and call['function'].keys() == {'name', 'arguments'}
            assert isinstance(call['function']['arguments'], str)
            waiting.append(call['id'])
        assert message['role'] == 'user' or message.get('tool_calls') or isinstance(message['content'], str)
    assert not waiting
    assert body.get('tools') != []
    for tool in body.get('tools', []):
        assert tool.keys() == {'type', 'function'}
        assert tool['function'].keys() == {'name', 'description', 'parameters'}
        Draft202012Validator.check_schema(tool['function']['parameters'])


def check_anthropic(body):
    """Raise AssertionError where Anthropic would answer 400."""
    assert body.keys() <= {'model', 'messages', 'max_tokens', 'tools', 'stream'}
    roles = [message['role'] for message in body['messages']]
    assert roles == ['user', 'assistant'] * (len(roles) // 2) + ['user']
    waiting = set()
    for message in body['messages']:
        assert message['content']
        blocks = [] if isinstance(message['content'], str) else message['content']
        results = {block['tool_use_id'] for block in blocks if block['type'] == 'tool_result'}
        assert message['role'] == 'assistant' or results == waiting, 'all results belong into the next message'
        waiting = {block['id'] for block in blocks if block['type'] == 'tool_use'}
        for block in blocks:
            keys = {
                'text': {'type', 'text'},
                'thinking': {'type', 'thinking', 'signature'},
                'tool_use': {'type', 'id', 'name', 'input'},
                'tool_result': {'type', 'tool_use_id', 'content', 'is_error'},
            }[block['type']]
            assert {key for key, value in block.items() if value is not None} == keys, block
            assert block['type'] != 'thinking' or block['signature'] == 'c2lnbmVk'
    for tool in body.get('tools', []):
        assert tool.keys() == {'name', 'description', 'input_schema'}
        Draft202012Validator.check_schema(tool['input_schema'])


class Server(http.server.ThreadingHTTPServer):
    """Sends the replies in `script`, in the format of the requested API; keeps the bodies of all requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.script, self.bodies, self.keys = [], [], []

    def url(self, provider):
        return f'http://127.0.0.1:{self.server_port}' + ('/v1' if provider == 'openai' else '')


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.server.bodies.append(body)
        of_openai = self.path == '/v1/chat/completions'
        self.server.keys.append(self.headers['Authorization'].removeprefix('Bearer '))
        assert of_openai or (self.path == '/v1/messages' and self.headers['anthropic-version'])
        try:
            (check_openai if of_openai else check_anthropic)(body)
        except (AssertionError, KeyError, ValueError) as error:
            return self.refuse(400, f'bad request: {error!r}', of_openai)
        reply = self.server.script(body) if callable(self.server.script) else self.server.script.pop(0)
        if reply == 'half a stream':
            return self.send(200, 'text/event-stream', 'data: {"id"', length=1000)
        if reply == 'a web page':
            return self.send(200, 'text/html', '<html>Welcome</html>')
        if isinstance(reply, int):
            return self.refuse(reply, 'not today', of_openai)
        stream = body.get('stream', False)
        shape = (openai_shape if of_openai else anthropic_shape)(reply, stream)
        if not stream:
            return self.send(200, 'application/json', json.dumps(shape))
        lines = []
        for event, data in shape:
            lines += [f'event: {event}'] if event else []
            lines += [f'data: {data if isinstance(data, str) else json.dumps(data)}', '']
        return self.send(200, 'text/event-stream; charset=utf-8', '\n'.join([*lines, '']))

    def refuse(self, status, message, of_openai):
        error = {'type': 'invalid_request_error', 'message': message}
        error = {'error': {**error, 'param': None, 'code': None}} if of_openai else {'type': 'error', 'error': error}
        self.send(status, 'application/json', json.dumps(error))

    def send(self, status, kind, text, length=None):
        data = text.encode()
        self.send_response(status)
        self.send_header('Content-Type', kind)
        self.send_header('Content-Length', str(length or len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def run_server():
    """Yield a Server that runs in a thread."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def says(text='', *calls, reason=None):
    """Return a reply in no API's format; calls: (id, name, arguments), the arguments as JSON text or an object."""
    calls = [(id, name, of if isinstance(of, str) else json.dumps(of)) for id, name, of in calls]
    return {'text': text, 'calls': calls, 'reason': reason}


def results_in(body):
    """Return [(call id, text, is_error or None)] of the last results in a request."""
    messages = body['messages']
    if isinstance(messages[-1]['content'], list):
        return [(block['tool_use_id'], block['content'], block['is_error']) for block in messages[-1]['content']]
    last = itertools.takewhile(lambda message: message['role'] == 'tool', reversed(messages))
    return [(message['tool_call_id'], message['content'], None) for message in last][::-1]
