"""A page to explore what a model could have said, and an endpoint as OpenAI's that tells its probabilities.

    python serve.py                                              the story model, and its page in the browser
    python serve.py --init_from=tiny-stories --compare_to=tiny   two models side by side
    python serve.py --open=False --port=9000                     the endpoint only: http://127.0.0.1:9000/v1

`python serve.py --help` lists every setting. Ctrl-C ends it.
"""

if __name__ == '__main__':
    from common.interrupts import exit_on_interrupt

    exit_on_interrupt()  # Ctrl-C while the rest is imported, which takes seconds

import copy
import socket
import threading
import webbrowser
from dataclasses import dataclass

import uvicorn

import configurator
from common.errors import UserError
from common.notes import note
from lm.chat import find_template, start_chat
from lm.settings import (
    ModelSettings,
    choose_model,
    load_chosen_model,
    model_folder,
    model_name,
    optimise_for_inference,
    settings_of_models,
)
from server.app import make_app
from server.engine import Engine, NamedModel
from server.protocol import BoundedProtocol
from server.security import is_every_address, is_loopback, make_token


@dataclass
class Settings(ModelSettings):
    """A page to explore what a model could have said, and an endpoint as OpenAI's that tells its probabilities."""

    compare_to: str | None = None  # a second model, to see side by side with the first
    host: str = '127.0.0.1'  # the address to listen on; another than this machine's own needs the token in the address
    port: int = 8000  # 0 takes any that is free
    open: bool = True  # open the page in a browser
    allow_origin: str | None = None  # pages of another site that may ask: https://example.org
    quantize: str | None = None  # int8: eight-bit weights, faster and smaller; probabilities change slightly
    tune: str = 'once'  # measure which way to multiply is the fastest here, and remember it: once, again or never
    verbose: bool = False  # print what was measured, and chosen
    compile: bool = False  # torch.compile the model: a slower start, then faster


def main(settings):
    """Load the models, and answer requests until Ctrl-C."""
    settings = check_settings(settings)
    listener = listen(settings)  # first, since it takes no time to fail
    token = None if is_loopback(settings.host) else make_token()
    engine = Engine([load_served_model(one) for one in settings_of_models(settings)])
    app = make_app(engine, settings, token)
    address, *others = addresses_of(listener, settings.host, token)
    print(f'{address}  (Ctrl-C ends it)', flush=True)
    for other in others:
        print(f'{other}  (where that name is not known)', flush=True)
    if settings.open:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    uvicorn.Server(configure(app)).run([listener])


def configure(app):
    """Return how uvicorn serves an application: it prints nothing, and ends within a second."""
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws='none',
        log_level='critical',
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )


def check_settings(settings):
    """Return the settings with the model filled in; raise UserError for invalid values."""
    if not settings.host:
        raise UserError('--host is empty: 127.0.0.1 is for this machine only, 0.0.0.0 for others, too')
    if not 0 <= settings.port <= 65535:
        raise UserError(f'--port={settings.port}: it must be between 0 and 65535')
    return choose_model(settings)


def load_served_model(settings):
    """Return the NamedModel of some settings."""
    model, tokenizer = load_chosen_model(settings, to_pack=not settings.compile)
    chat_tokenizer, folder, name = None, model_folder(settings), model_name(settings)
    if find_template(tokenizer, folder):
        chat_tokenizer = copy.copy(tokenizer)
        try:
            start_chat(chat_tokenizer, folder, name, bos=settings.bos)
        except UserError as error:
            note(f'{error}; so there are no chats with it')
            chat_tokenizer = None
    return NamedModel(name, optimise_for_inference(model, settings), tokenizer, settings, chat_tokenizer)


def listen(settings):
    """Return a socket that listens on the host and port of the settings; raise UserError if that is not possible."""
    try:
        family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        takes_both = family == socket.AF_INET6 and is_every_address(settings.host) and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, backlog=128, dualstack_ipv6=takes_both)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f'cannot listen on --host={settings.host} --port={settings.port}: {reason}; --port=0 takes any free port'
        ) from error


def addresses_of(listener, host, token):
    """Return the addresses to open in a browser: of every address, that with this machine's name and its number."""
    if is_every_address(host):
        names = [socket.gethostname(), *filter(None, [number_on_network()])]
    else:
        names = [f'[{host}]' if ':' in host else host]
    return [f'http://{name}:{listener.getsockname()[1]}/' + (f'?token={token}' if token else '') for name in names]


def number_on_network():
    """Return this machine's IPv4 address on the network that leads outside; None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(('192.0.2.1', 9))  # an address for examples (RFC 5737); a datagram socket sends nothing yet
        except OSError:
            return None
        return probe.getsockname()[0]


if __name__ == '__main__':
    configurator.run(main, Settings)
