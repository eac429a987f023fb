"""`tilelab view RESULT|IMAGE...`: look at it in the browser."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilelab.cli.run_arguments import (
    AXES_HELP,
    CHANNEL_HELP,
    LEVEL_HELP,
    PIXEL_SIZE_HELP,
    SERIES_HELP,
    TIMEPOINT_HELP,
    parse_sizes,
)
from tilelab.cli.screen import say
from tilelab.cli.trust_words import OUTSIDE_HELP
from tilelab.errors import InputError
from tilelab.io.storage.claims import Write, claim
from tilelab.machine.disk import write_text
from tilelab.spec import PRECISIONS

if TYPE_CHECKING:
    from tilelab.view.gather import Gathering
    from tilelab.view.live import Live
    from tilelab.view.server import ViewServer


EXAMPLES = (
    "tilelab view big.superalloy.ome.zarr           # over its micrograph",
    "tilelab view big.tif truth.tif                 # over each other",
    "tilelab view big.tif --model superalloy        # segmented as you look",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add = parser.add_argument
    add("named", nargs="+", metavar="RESULT|IMAGE", help="results, images and label images, one over another")
    add("--image", metavar="IMAGE", help="the micrograph, where a result does not say it")
    add("--full-size", action="store_true", help="begin in the middle at full size, not with all")
    add("--no-open", action="store_true", help="say the link only, open no browser\nof another machine: ssh -L "
        "PORT:127.0.0.1:PORT")  # fmt: skip
    add("--port", type=int, default=0, metavar="N", help="port on 127.0.0.1 (any that is free)")
    add("--state", metavar="FILE.json", help="begin with a view that was saved")
    add("--save-state", metavar="FILE.json", help="save the view when it is left\nposition, layers, colours")
    group = parser.add_argument_group("before the run: what is looked at is segmented")
    model = group.add_argument
    model("--model", "-m", metavar="M", help="segment the image where it is looked at")
    model("-o", "--out", metavar="OUT", help="the result that grows: NAME.ome.zarr (as infer)")
    model("--rescale", action="store_true", help="as for infer")
    model("--ignore-pixel-size", action="store_true", help="as for infer")
    model("--device", default="auto", metavar="D", help="as for infer")
    model("--precision", default="auto", choices=("auto", *PRECISIONS), metavar="P", help="as for infer")
    model("--engine", default="auto", metavar="NAME", help="as for infer")
    add = parser.add_argument_group("how images are read").add_argument
    add("--pixel-size", type=parse_sizes, metavar="NM", help=PIXEL_SIZE_HELP)
    add("--level", type=int, default=0, metavar="N", help=LEVEL_HELP)
    add("--series", metavar="N", help=SERIES_HELP)
    add("--channel", type=int, metavar="N", help=CHANNEL_HELP)
    add("--timepoint", type=int, metavar="N", help=TIMEPOINT_HELP)
    add("--axes", metavar="LETTERS", help=AXES_HELP)
    add("--allow-outside", action="store_true", help=OUTSIDE_HELP)


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from tilelab.view.gather import Gathering
    from tilelab.view.server import ViewServer, client_folder

    client_folder()
    _check(args)
    names = ("level", "series", "channel", "timepoint", "axes", "allow_outside")
    choices = {name: getattr(args, name) for name in names} | {"pixel_size_nm": args.pixel_size}
    begin = None if args.state is None else _read_state(Path(args.state))
    with Gathering(say, choices) as gathered:
        live = _model_at_work(args, gathered) if args.model is not None else contextlib.nullcontext()
        with live as growing:
            for number, name in enumerate(args.named if args.model is None else args.named[1:]):
                gathered.add(name, args.image if number == 0 else None)
            if growing is not None and begin is None:
                growing.look_ahead()
            whole = args.model is None and not args.full_size
            server = ViewServer(gathered.scene(), args.port, state=begin, full_size=not whole)
            serve(server, open_page=not args.no_open, save=args.save_state)
            if growing is not None:
                say(growing.told_at_end())
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse flags that have no meaning, a view saved over another file, and a folder of many results."""
    from tilelab.run.batch.many import PAGE

    claim({"RESULT|IMAGE": args.named, "--image": args.image}, [Write(args.save_state, "--save-state", "json")])

    for summary in (Path(name) / PAGE for name in args.named):
        if summary.is_file():
            raise InputError(f"{summary.parent} holds results of many images: view one of them, or open {summary}")
    if args.model is not None:
        return
    for flag in ("out", "ignore_pixel_size", "rescale", "device", "precision", "engine"):
        if getattr(args, flag) not in (None, False, "auto"):
            raise InputError(f"--{flag.replace('_', '-')} is for what a model makes: give --model, or leave it out")


def _model_at_work(args: argparse.Namespace, gathered: Gathering) -> contextlib.AbstractContextManager[Live | None]:
    """The model that segments what is looked at."""
    from tilelab.run.options import Options
    from tilelab.view.live import open_live

    names = ("level", "series", "channel", "timepoint", "axes", "allow_outside", "ignore_pixel_size", "rescale")
    options = Options(
        **{name: getattr(args, name) for name in (*names, "engine", "device", "precision")},
        pixel_size_nm=args.pixel_size,
    )
    return open_live(args.named[0], args.model, args.out, options, gathered, say)


def serve(server: ViewServer, *, open_page: bool, save: str | None) -> None:
    """Say the link, open it, and answer until Ctrl-C."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    server.start()
    try:
        print(server.url, flush=True)
        say("the page is there until Ctrl-C")
        if open_page:
            webbrowser.open(server.url)
        while server.wait(3600.0):
            continue
    except KeyboardInterrupt:
        print(file=sys.stderr)
    finally:
        server.stop()
        if save is not None:
            state = server.state or server.begin_state("")
            write_text(Path(save), json.dumps(_without_sources(state), indent=1) + "\n")


def _without_sources(state: dict[str, Any]) -> dict[str, Any]:
    """A state without addresses, which die with their server."""
    layers = [{key: v for key, v in layer.items() if key != "source"} for layer in state.get("layers", ())]
    return state | {"layers": layers}


def _read_state(path: Path) -> dict[str, Any]:
    from tilelab.view.layers import is_state

    try:
        state: object = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no saved view: {error}") from error
    if not is_state(state):
        raise InputError(f"{path} is no saved view")
    return state
