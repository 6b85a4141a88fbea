"""A small web server on this machine, for tests of what is fetched."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Silent:
    """Beside a handler of the library: logs nothing."""

    def log_message(self, format, *args):  # noqa: A002 - named by the library
        pass


class _Quiet(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that hangs up is no news here."""


@contextmanager
def serving(handler) -> Iterator[str]:
    """Meanwhile a server answers; gives its address.

    Args:
        handler: Makes what answers one question.
    """
    with _Quiet(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
