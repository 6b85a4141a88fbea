"""An S3 server of this machine, for tests: moto's, started and stopped by them."""

import contextlib
import logging
import os
from unittest import mock

from moto.server import ThreadedMotoServer

BUCKET = "bucket"


@contextlib.contextmanager
def s3_server():
    """Yields the environment that leads s3fs, here and in child processes, to the server."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "anybody",
        "AWS_SECRET_ACCESS_KEY": "nobody's",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    try:
        with mock.patch.dict(os.environ, environment):
            import s3fs

            s3fs.S3FileSystem.clear_instance_cache()
            s3fs.S3FileSystem().makedirs(
                BUCKET, exist_ok=True
            )  # moto keeps buckets for the process
            yield environment
            s3fs.S3FileSystem.clear_instance_cache()
    finally:
        server.stop()
