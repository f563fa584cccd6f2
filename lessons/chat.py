"""A conversation with a chat model: not a lesson itself, but shared by arithmetic.py and tools.py.

Two APIs are common, and this module speaks both: OpenAI's chat completions, which many other servers have adopted
(--base_url names one), and Anthropic's messages. In both, the program keeps the messages and sends all of them each
time, because the model remembers nothing. tools.py explains what Calls and Results are for.
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
from common.strings import show_invisible
from pictures.style import BLUE, GREY, ORANGE, save_figure

PROVIDERS = {  # the variable that holds the key, the default model, the client library that this was tested with
    'openai': ('OPENAI_API_KEY', 'gpt-5.4-mini', 'openai==3.54.0'),
    'anthropic': ('ANTHROPIC_API_KEY', 'claude-haiku-5-5', 'anthropic==2.12.0'),
}


class NoAnswerError(UserError):
    """The model did not finish its answer."""


class Call(NamedTuple):
    """A function call that a model requests."""

    id: str
    name: str
    arguments: str | dict  # OpenAI sends JSON text, which may be broken; Anthropic sends an object


class Result(NamedTuple):
    """The outcome of a call, sent back to the model."""

    call: Call
    text: str
    is_error: bool


class Reply(NamedTuple):
    """What the model wrote: text, calls, or both."""

    text: str
    calls: list[Call]


@dataclass
class Chat:
    """A conversation so far, and the model it is with."""

    client: Any  # from the API's own library
    model: str
    tools: list[dict] = field(default_factory=list)  # functions: the name, description and parameters of each
    on_text: Callable[[str], None] | None = None  # called with each piece of text as it arrives; None: no streaming
    max_tokens: int = 4096  # in one reply
    messages: list = field(default_factory=list)

    def add_question(self, text):
        """Add a message from the user."""
        self.messages.append({'role': 'user', 'content': text})

    def require(self, name, response):
        """Return an attribute of the server's response; raise UserError if it has none, as a web page has none."""
        if getattr(response, name, None) is None:
            text = textwrap.shorten(str(response), 100)
            raise UserError(f'{self.model}: the server did not send a reply but {text!r}; check --base_url')
        return getattr(response, name)

    def make_reply(self, text, calls, stop_reason):
        """Return the Reply. Raises NoAnswerError if it was cut off, perhaps in the middle of a call."""
        if stop_reason in (None, 'length', 'max_tokens', 'model_context_window_exceeded'):
            limit = f'{stop_reason}; {self.max_tokens} tokens allowed'
            raise NoAnswerError(f'{self.model} was cut off ({limit}); ask for less')
        return Reply(text, calls)


class OpenAIChat(Chat):
    """A conversation through OpenAI's chat completions."""

    def get_reply(self):
        """Return the model's Reply to the last message, and add it to the messages."""
        request = {'model': self.model, 'messages': self.messages, 'max_completion_tokens': self.max_tokens}
        if self.tools:  # the API rejects an empty list
            request['tools'] = [{'type': 'function', 'function': tool} for tool in self.tools]
        if self.on_text is None:
            response = self.client.chat.completions.create(**request)
            choice = self.require('choices', response)[0]
            message, reason = choice.message, choice.finish_reason
            text, tool_calls = message.content or message.refusal or '', message.tool_calls or []
            calls = [Call(call.id, call.function.name, call.function.arguments) for call in tool_calls]
        else:
            text, calls, reason = self._read_stream(self.client.chat.completions.create(**request, stream=True))
        tool_calls = [
            {'id': id, 'type': 'function', 'function': {'name': name, 'arguments': arguments}}
            for id, name, arguments in calls
        ]
        message = {'role': 'assistant', 'content': text, **({'tool_calls': tool_calls} if tool_calls else {})}
        self.messages.append(message)
        return self.make_reply(text, calls, reason)

    def _read_stream(self, chunks):
        """Return (text, calls, finish reason). A call's id and name come first, then its arguments in pieces."""
        text, calls, reason = '', {}, None
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            if piece := choice.delta.content or choice.delta.refusal:
                text += piece
                self.on_text(piece)
            for part in choice.delta.tool_calls or []:  # the index tells parallel calls apart
                id, name, arguments = calls.get(part.index, ('', '', ''))
                name, arguments = part.function.name or name, arguments + (part.function.arguments or '')
                calls[part.index] = Call(part.id or id, name, arguments)
            reason = choice.finish_reason or reason
        return text, list(calls.values()), reason

    def add_results(self, results):
        """Add the results of the model's calls, one message each; this API has no field for errors, only text."""
        for call, text, _ in results:
            self.messages.append({'role': 'tool', 'tool_call_id': call.id, 'content': text})


class AnthropicChat(Chat):
    """A conversation through Anthropic's messages."""

    def get_reply(self):
        """Return the model's Reply to the last message, and add it to the messages."""
        request = {'model': self.model, 'messages': self.messages, 'max_tokens': self.max_tokens}
        if self.tools:
            request['tools'] = [
                {'name': tool['name'], 'description': tool['description'], 'input_schema': tool['parameters']}
                for tool in self.tools
            ]
        if self.on_text is None:
            message = self.client.messages.create(**request)
            self.require('content', message)
        else:
            with self.client.messages.stream(**request) as stream:  # this library assembles the pieces itself
                for piece in stream.text_stream:
                    self.on_text(piece)
                message = stream.get_final_message()
        self.messages.append({'role': 'assistant', 'content': message.content})  # complete, with its thinking
        text = ''.join(block.text for block in message.content if block.type == 'text')
        calls = [Call(block.id, block.name, block.input) for block in message.content if block.type == 'tool_use']
        return self.make_reply(text, calls, message.stop_reason)

    def add_results(self, results):
        """Add the results of the model's calls; the API wants the results of parallel calls in one message."""
        blocks = [
            {'type': 'tool_result', 'tool_use_id': call.id, 'content': text, 'is_error': is_error}
            for call, text, is_error in results
        ]
        self.messages.append({'role': 'user', 'content': blocks})


class ScriptedChat(Chat):
    """Plays the model without a key. `client` is the script: for each reply (text, *(function, arguments)).

    {0}, {1} ... in a text stand for the results of the previous calls. Its messages are the question, then the results.
    """

    def get_reply(self):
        """Return the next reply in the script."""
        (text, *calls), last = self.client[len(self.messages) - 1], self.messages[1:][-1:]
        text = text.format(*(result.text for results in last for result in results))
        return Reply(text, [Call(str(number), *call) for number, call in enumerate(calls)])

    def add_results(self, results):
        """Add the results of the calls."""
        self.messages.append(results)


def format_arguments(arguments):
    """Return the arguments of a Call as JSON text, the form in which OpenAI sends them."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def print_results(console, results):
    """Print the calls of one reply and their results."""
    for (_, name, arguments), text, is_error in results:
        colour, call = 'red' if is_error else 'green', f'{name} {format_arguments(arguments)}'
        console.print(f'  {escape(show_invisible(call))}\n      [{colour}]{escape(show_invisible(text))}[/]')


def draw_conversation(path, model, question, turns, answer):
    """Draw who sends what to whom, from top to bottom; turns: the Results for each of the model's replies.

    Results are blue, errors that go back to the model orange.
    """
    from matplotlib import pyplot

    arrows = [(0, 1, question, 'black')]  # (from lane, to lane, text, colour)
    for results in turns:
        arrows += [(1, 2, f'{call.name} {format_arguments(call.arguments)}', 'black') for call, *_ in results]
        arrows += [(2, 1, text, ORANGE if is_error else BLUE) for _, text, is_error in results]
    arrows.append((1, 0, answer, 'black'))
    lines = [textwrap.wrap(text, 58, max_lines=3, placeholder=' ...') or [''] for *_, text, _ in arrows]
    heights = np.cumsum([0.3 + 0.2 * len(wrapped) for wrapped in lines])  # of each arrow, in inches from the top
    figure, axes = pyplot.subplots(figsize=(9, heights[-1] + 0.8), layout='constrained')
    for lane, name in enumerate(('you', model, 'your program')):
        axes.plot((lane, lane), (0, heights[-1] + 0.2), color=GREY, linewidth=1, zorder=0)
        axes.text(lane, -0.1, name, ha='center', va='bottom', weight='bold')
    for (start, end, _, colour), wrapped, y in zip(arrows, lines, heights):
        axes.annotate('', (end, y), (start, y), arrowprops={'arrowstyle': '->', 'color': colour})
        text = '\n'.join(wrapped)
        axes.text((start + end) / 2, y - 0.04, text, ha='center', va='bottom', color=colour, fontsize=8)
    axes.set(xlim=(-0.15, 2.15), ylim=(heights[-1] + 0.2, -0.4))
    axes.axis('off')
    save_figure(figure, path)
    pyplot.close(figure)


@contextmanager
def connect_provider(provider, model=None, base_url=None):
    """Yield a function that starts a Chat; API errors inside the block become UserErrors.

    provider: openai or anthropic. model: None for the default in PROVIDERS. base_url: a server other than the
    provider's own, such as http://localhost:8000/v1. The key is read from the environment; such a server may need none.
    """
    if provider not in PROVIDERS:
        raise UserError(f'--provider={provider} is neither {" nor ".join(PROVIDERS)}')
    key, default_model, requirement = PROVIDERS[provider]
    try:
        library, http = importlib.import_module(provider), importlib.import_module('httpx2')  # both libraries use it
    except ImportError as error:
        raise UserError(f'--provider={provider} needs its library ({error}): pip install {requirement}') from error
    if not os.environ.get(key) and not base_url:
        raise UserError(f'--provider={provider} needs a key: set {key}, or name a server that needs none: --base_url')
    chat_class, client_class = (
        (OpenAIChat, library.OpenAI) if provider == 'openai' else (AnthropicChat, library.Anthropic)
    )
    try:
        with client_class(base_url=base_url, api_key=os.environ.get(key) or 'none') as client:
            yield lambda **settings: chat_class(client, model or default_model, **settings)
    except (library.APIError, http.HTTPError, http.InvalidURL) as error:  # HTTPError: a stream broke off
        where = f'{provider} ({model or default_model}{f" at {base_url}" if base_url else ""})'
        cause = f' {error.__cause__}' if isinstance(error, library.APIConnectionError) and error.__cause__ else ''
        hint = f'; check {key}' if getattr(error, 'status_code', None) in (401, 403) else ''
        if isinstance(error, library.APIConnectionError):
            hint = '; check --base_url' if base_url else '; is there a network?'
        raise UserError(f'{where}: {getattr(error, "message", error)}{cause}{hint}') from error
