"""The subcommand `demo`: a page in the browser to draw on, served on this machine only."""

import errno
import os
import socket
import sys
import tempfile
import time

from fnn_lightning.commands.demo_page import make_page
from fnn_lightning.commands.options import add_ckpt_path, load_given, make_parser, parse
from fnn_lightning.errors import InputError
from fnn_lightning.runs.signals import StopSignals

MAX_UPLOAD = "50mb"


def main(argv: list[str]) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        argv: The command line after `demo`.

    Raises:
        InputError: If an argument or the checkpoint is invalid, the address is not free, or Gradio
            is not installed.
    """
    parser = make_parser(
        "demo",
        "Serves a page to draw on, with the net's prediction. No data leaves this machine, "
        "and only this machine can open the page unless --host says otherwise.",
    )
    add_ckpt_path(parser)
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="Address to serve on; 0.0.0.0: all addresses."
    )
    parser.add_argument("--port", type=int, default=7860, help="Port; 0: any free one.")
    options = parse(parser, argv)
    port = free_port(options.host, options.port)
    trained = load_given(options.ckpt_path, "demo")
    signals = StopSignals()
    with tempfile.TemporaryDirectory(prefix="fnn_lightning_") as folder:
        # Gradio reads these when it is imported: no telemetry, and no upload is left behind
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        os.environ["GRADIO_TEMP_DIR"] = folder
        # Gradio checks that its own page answers, which a proxy would break
        for name in ("NO_PROXY", "no_proxy"):
            own = (os.environ.get(name), options.host, "127.0.0.1", "localhost")
            os.environ[name] = ",".join(filter(None, own))
        page, launch_options = make_page(trained)
        signals.listen()
        try:
            page.launch(
                server_name=options.host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                max_file_size=MAX_UPLOAD,
                **launch_options,
            )
            print(f"draw at http://{options.host}:{port}, stop with Ctrl-C", flush=True)
            while not signals.received:
                time.sleep(0.2)
            if sys.stdout.isatty():
                print()  # after the ^C that the terminal has shown
        finally:
            page.close(verbose=False)
            signals.release()


def free_port(host: str, port: int) -> int:
    """Check that a port is free.

    Args:
        host: Address to serve on.
        port: The port; 0 for any.

    Returns:
        The port; for 0 one that is free.

    Raises:
        InputError: If it is not free, or there is no such address or port.

    Example:
        >>> free_port("127.0.0.1", 0) > 0
        True
    """
    if not 0 <= port < 2**16:
        raise InputError(f"Expected --port to be from 0 to {2**16 - 1}, but got {port}")
    try:
        with socket.create_server((host, port)) as server:
            return int(server.getsockname()[1])
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise InputError(
                f"Expected a free port, but --port {port} is in use, perhaps by another demo: "
                "--port 0 takes any free one"
            ) from None
        raise InputError(
            f"Expected a free address, but got --host {host!r} and --port {port}: {error}"
        ) from None
