"""The browser of this computer, for what only a browser can do: print a page as PDF, try a page in tests."""

import os
import shutil
from pathlib import Path

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome', 'msedge')
PLACES = (  # of installations that are not on the search path
    '/Applications/Google Chrome.app/Contents/MacOS/Google Chrome',
    '/Applications/Chromium.app/Contents/MacOS/Chromium',
    '/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge',
    *(
        rf'{os.environ.get(variable, "")}\{program}'
        for variable in ('PROGRAMFILES', 'PROGRAMFILES(X86)', 'LOCALAPPDATA')
        for program in (r'Google\Chrome\Application\chrome.exe', r'Microsoft\Edge\Application\msedge.exe')
    ),
)


def find_browser():
    """Return the path of Chromium, Chrome or Edge; None if none is found."""
    found = map(shutil.which, NAMES)
    return next(filter(None, [*found, *(place for place in PLACES if Path(place).is_file())]), None)
