"""A conversation with a chat model: no lesson of its own, but what arithmetic.py and tools.py share.

Two APIs are common, and this speaks both: OpenAI's chat completions, which many other servers have taken over
(--base_url names one), and Anthropic's messages. Either way the program keeps the messages and sends all of them each
time: the model remembers nothing. tools.py explains what Calls and Results are for.
"""

import importlib
import json
import os
import textwrap
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from rich.markup import escape

from common.errors import UserError
from pictures.style import FELL, GIVEN_UP, ROSE, save_figure

PROVIDERS = {  # the variable that holds the key, a model, the client that this was tested with
    'openai': ('OPENAI_API_KEY', 'gpt-5.4-mini', 'openai==3.54.0'),
    'anthropic': ('ANTHROPIC_API_KEY', 'claude-haiku-5-5', 'anthropic==2.12.0'),
}


class Call(NamedTuple):
    """A call of a function that a model asks for."""

    id: str
    name: str
    arguments: str | dict  # OpenAI sends the JSON as text, which may be broken; Anthropic sends an object


class Result(NamedTuple):
    """What came of a call, told to the model."""

    call: Call
    text: str
    is_error: bool


class Reply(NamedTuple):
    """What the model said: words, calls, or both."""

    text: str
    calls: list[Call]


@dataclass
class Chat:
    """A conversation so far, and with whom."""

    client: Any  # of the API's own library
    model: str
    tools: list[dict] = field(default_factory=list)  # functions: the name, description and parameters of each
    say: Callable[[str], None] | None = None  # gets the text as it is written, piece by piece; None: no streaming
    max_tokens: int = 4096  # of one reply
    messages: list = field(default_factory=list)

    def write(self, text):
        """Add what a person says."""
        self.messages.append({'role': 'user', 'content': text})

    def checked(self, text, calls, reason):
        """Return the Reply, unless it broke off in the middle, which may be the middle of a call."""
        if reason in (None, 'length', 'max_tokens', 'model_context_window_exceeded'):
            raise UserError(f'{self.model} broke off ({reason}; {self.max_tokens} tokens are allowed); ask for less')
        return Reply(text, calls)


class OpenAIChat(Chat):
    """A conversation through OpenAI's chat completions."""

    def reply(self):
        """Return the model's Reply to what was said last, and keep it among the messages."""
        request = {'model': self.model, 'messages': self.messages, 'max_completion_tokens': self.max_tokens}
        if self.tools:  # an empty list is refused
            request['tools'] = [{'type': 'function', 'function': tool} for tool in self.tools]
        if self.say is None:
            choice = self.client.chat.completions.create(**request).choices[0]
            message, reason = choice.message, choice.finish_reason
            text, asked = message.content or message.refusal or '', message.tool_calls or []
            calls = [Call(call.id, call.function.name, call.function.arguments) for call in asked]
        else:
            text, calls, reason = self._put_together(self.client.chat.completions.create(**request, stream=True))
        again = [
            {'id': id, 'type': 'function', 'function': {'name': name, 'arguments': arguments}}
            for id, name, arguments in calls
        ]
        self.messages.append({'role': 'assistant', 'content': text, **({'tool_calls': again} if again else {})})
        return self.checked(text, calls, reason)

    def _put_together(self, chunks):
        """Read a stream; return (text, calls, why it ended). Of a call, id and name come first, arguments in pieces."""
        text, calls, reason = '', {}, None
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            if piece := choice.delta.content or choice.delta.refusal:
                text += piece
                self.say(piece)
            for part in choice.delta.tool_calls or []:  # parallel calls are told apart by their index
                id, name, arguments = calls.get(part.index, ('', '', ''))
                name, arguments = part.function.name or name, arguments + (part.function.arguments or '')
                calls[part.index] = Call(part.id or id, name, arguments)
            reason = choice.finish_reason or reason
        return text, list(calls.values()), reason

    def answer(self, results):
        """Tell the model what came of its calls, a message each; an error can only be told in words."""
        for call, text, _ in results:
            self.messages.append({'role': 'tool', 'tool_call_id': call.id, 'content': text})


class AnthropicChat(Chat):
    """A conversation through Anthropic's messages."""

    def reply(self):
        """Return the model's Reply to what was said last, and keep it among the messages."""
        request = {'model': self.model, 'messages': self.messages, 'max_tokens': self.max_tokens}
        if self.tools:
            request['tools'] = [
                {'name': tool['name'], 'description': tool['description'], 'input_schema': tool['parameters']}
                for tool in self.tools
            ]
        if self.say is None:
            message = self.client.messages.create(**request)
        else:
            with self.client.messages.stream(**request) as stream:  # this library puts the pieces together itself
                for piece in stream.text_stream:
                    self.say(piece)
                message = stream.get_final_message()
        self.messages.append({'role': 'assistant', 'content': message.content})  # whole: its thoughts belong to it
        text = ''.join(block.text for block in message.content if block.type == 'text')
        calls = [Call(block.id, block.name, block.input) for block in message.content if block.type == 'tool_use']
        return self.checked(text, calls, message.stop_reason)

    def answer(self, results):
        """Tell the model what came of its calls; the API wants the results of parallel calls in one message."""
        blocks = [
            {'type': 'tool_result', 'tool_use_id': call.id, 'content': text, 'is_error': is_error}
            for call, text, is_error in results
        ]
        self.messages.append({'role': 'user', 'content': blocks})


class Scripted(Chat):
    """Stands in for a model where there is none: `client` is what it says, (text, *(function, arguments)) a reply.

    What came of the last calls is put in where a text has {0}, {1} ...; its messages are a question, then the results.
    """

    def reply(self):
        """Return what the script has next."""
        (text, *calls), last = self.client[len(self.messages) - 1], self.messages[1:][-1:]
        text = text.format(*(result.text for results in last for result in results))
        return Reply(text, [Call(str(number), *call) for number, call in enumerate(calls)])

    def answer(self, results):
        """Take what came of the calls."""
        self.messages.append(results)


def as_json(arguments):
    """Return the arguments of a Call as text, in which OpenAI sends them."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def print_results(console, results):
    """Print the calls of one reply, and what came of each."""
    for (_, name, arguments), text, is_error in results:
        colour = 'red' if is_error else 'green'
        console.print(f'  {name} {escape(as_json(arguments))}\n      [{colour}]{escape(text)}[/]')


def draw_conversation(path, model, question, turns, answer):
    """Write a picture of who says what to whom, from top to bottom; turns: the Results of each of the model's replies.

    Blue is what came of a call, orange an error that the model is told of.
    """
    from matplotlib import pyplot

    said = [(0, 1, question, 'black')]
    for results in turns:
        said += [(1, 2, f'{call.name} {as_json(call.arguments)}', 'black') for call, *_ in results]
        said += [(2, 1, text, FELL if is_error else ROSE) for _, text, is_error in results]
    said.append((1, 0, answer, 'black'))
    lines = [textwrap.wrap(text, 58, max_lines=3, placeholder=' ...') or [''] for *_, text, _ in said]
    heights = np.cumsum([0.3 + 0.2 * len(each) for each in lines])  # where each arrow is, in inches from above
    figure, axes = pyplot.subplots(figsize=(9, heights[-1] + 0.8), layout='constrained')
    for lane, name in enumerate(('you', model, 'your program')):
        axes.plot((lane, lane), (0, heights[-1] + 0.2), color=GIVEN_UP, linewidth=1, zorder=0)
        axes.text(lane, -0.1, name, ha='center', va='bottom', weight='bold')
    for (here, there, _, colour), text, y in zip(said, lines, heights):
        axes.annotate('', (there, y), (here, y), arrowprops={'arrowstyle': '->', 'color': colour})
        axes.text((here + there) / 2, y - 0.04, '\n'.join(text), ha='center', va='bottom', color=colour, fontsize=8)
    axes.set(xlim=(-0.15, 2.15), ylim=(heights[-1] + 0.2, -0.4))
    axes.axis('off')
    save_figure(figure, path)
    pyplot.close(figure)


@contextmanager
def connected(provider, model=None, base_url=None):
    """Yield a function that begins a Chat; what goes wrong inside the block on the way to the model is a UserError.

    provider: openai or anthropic. model: None for the one named above. base_url: of another server than the
    provider's own. The key is read from the environment by the provider's library.
    """
    if provider not in PROVIDERS:
        raise UserError(f'--provider={provider} is neither {" nor ".join(PROVIDERS)}')
    key, default_model, pin = PROVIDERS[provider]
    try:
        library, http = importlib.import_module(provider), importlib.import_module('httpx2')  # which both stand on
    except ImportError as error:
        raise UserError(f'--provider={provider} needs its library: pip install {pin}') from error
    if not os.environ.get(key):
        raise UserError(f'--provider={provider} needs a key: set {key} (to anything, if --base_url asks for none)')
    kind, connect = (OpenAIChat, library.OpenAI) if provider == 'openai' else (AnthropicChat, library.Anthropic)
    try:
        with connect(base_url=base_url) as client:
            yield lambda **settings: kind(client, model or default_model, **settings)
    except (library.APIError, http.HTTPError) as error:  # the latter where a stream breaks off
        raise UserError(f'{provider} ({model or default_model}): {getattr(error, "message", error)}') from error
