"""How far a step of the notebook is, so that nothing looks as if it hung."""

import io
import re
import threading
import time

PAUSE = 0.5  # seconds between two looks at what is at work
SILENCE = 3  # seconds before it is said how long something has taken

_at_work = None  # the Progress of the button that was pressed; None if all are at rest


class Progress:
    """Says, while a block of code runs, what it does, how much is done and about how long the rest will take."""

    def __init__(self, say, doing):
        """say: a function that shows a sentence. doing: what is done, such as Measuring …"""
        self.say, self.doing, self.share = say, doing, None
        self._began = self._first = time.monotonic()
        self._first_share, self._said = 0, None
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._say_again, daemon=True)

    def __enter__(self):
        global _at_work
        self.say(self.doing)
        _at_work = self
        self._watch.start()
        return self

    def __exit__(self, *_):
        global _at_work
        _at_work = None
        self._ended.set()
        self._watch.join()  # what is said next stays

    def update(self, share):
        """Note which share is done, from 0 to 1; one that is less than before belongs to something new."""
        if self.share is None or share < self.share:
            self._first, self._first_share = time.monotonic(), share
        self.share = share

    def describe(self):
        """Return what is done, how much of it, and how long the rest will take, as a sentence."""
        now, share = time.monotonic(), self.share
        if share is None or share >= 1:
            elapsed = now - self._began
            return f'{self.doing} {describe_seconds(elapsed)} so far' if elapsed >= SILENCE else self.doing
        said = f'{self.doing} {share:.0%} done'
        if share > self._first_share:
            left = (now - self._first) / (share - self._first_share) * (1 - share)
            said += f', about {describe_seconds(left)} left'
        return said

    def _say_again(self):
        while not self._ended.wait(PAUSE):
            if (said := self.describe()) != self._said:
                self._said = said
                self.say(said)


def report(share):
    """Tell the button that was pressed, if one was, which share is done, from 0 to 1."""
    if _at_work is not None:
        _at_work.update(share)


class Bars(io.StringIO):
    """A stream that keeps what is printed, and reports how far the progress bars in it are."""

    def isatty(self):
        """Return True, since bars are drawn for people only."""
        return True

    def write(self, text):
        """Keep a text. A bar that counts files is no measure: one of them has nearly all of the bytes."""
        if (found := re.search(r'(\d+)%\|', text)) and 'Fetching' not in text:
            report(int(found[1]) / 100)
        return super().write(text)


def describe_seconds(seconds):
    """Return a time to wait, in words."""
    if seconds < 90:
        count = max(1, round(seconds))
        return f'{count} second{"" if count == 1 else "s"}'
    return f'{round(seconds / 60)} minutes' if seconds < 5400 else f'{seconds / 3600:.1f} hours'
