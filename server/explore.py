"""The page to explore a text and its alternatives, and what it asks of the server."""

from starlette.responses import HTMLResponse
from starlette.routing import Route

from common.files import PROJECT
from pictures.page import content_security_policy


def routes(engine):
    """Return the routes of the page."""
    html = (PROJECT / 'server' / 'explore.html').read_text(encoding='utf-8')
    # It may run its own script and style, and reach nothing but this server.
    policy = f"{content_security_policy(html)}; connect-src 'self'; img-src data: blob:; frame-ancestors 'none'"

    async def page(request):
        """Return the page."""
        return HTMLResponse(html, headers={'Content-Security-Policy': policy})

    return [Route('/', page)]
