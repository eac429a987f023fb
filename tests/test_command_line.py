"""The command line as one reads it: examples that parse, pages that fit, errors that point at the page that helps."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tilelab.cli import command_parser, main
from tilelab.cli.completion import SHELLS
from tilelab.cli.found import area_text
from tilelab.cli.json_output import name_json
from tilelab.cli.main import COMMANDS, EXAMPLES, build_parser, parser_of
from tilelab.cli.pace import Pace
from tilelab.text import did_you_mean


def said_by(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(words))
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_page_begins_with_examples_that_parse(command: str) -> None:
    parser = parser_of(command)
    assert parser.examples
    for line in parser.examples:
        words = shlex.split(line.partition(" >")[0], comments=True)
        assert words[:2] == ["tilelab", command]
        build_parser(command).parse_args(words[1:])
    page = parser.format_help()
    assert page.index("examples:") < page.index("usage:")


def test_the_first_page_names_every_command_and_its_examples_parse() -> None:
    code, page, _ = said_by("--help")
    assert code == 0
    assert [name for name in COMMANDS if not re.search(rf"^  {name} ", page, re.MULTILINE)] == []
    for line in EXAMPLES:
        words = shlex.split(line, comments=True)[1:]
        build_parser(words[0]).parse_args(words)
    assert said_by("help")[1] == page
    assert said_by() == (2, page, "")


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_pages_fit_eighty_columns_and_an_option_takes_a_line(command: str | None) -> None:
    parser = build_parser() if command is None else parser_of(command)
    for full in (False, True):
        page = parser.format_help(full=full)
        assert [line for line in page.splitlines() if len(line) > 80] == []
        assert page == page.encode("ascii").decode()
    lines = parser.format_help().partition("usage:")[2].splitlines()
    wrapped = [before for before, line in pairwise(lines) if re.match(" {20}", line)]
    assert [line for line in wrapped if len(line) < 27] == []  # a flag that is long has two


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_more_than_the_short_page(command: str) -> None:
    short, full = said_by(command, "--help")[1], said_by("help", command)[1]
    flags = set(re.findall(r"--[a-z][\w-]+", short)) - {"--help"}
    assert flags <= set(re.findall(r"--[a-z][\w-]+", full))
    assert len(full) >= len(short) - 80


def test_colours_only_where_they_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("WT_SESSION", "1")
    seen, plain = Terminal(), io.StringIO()
    parser_of("infer").print_help(seen)
    parser_of("infer").print_help(plain)
    assert "\x1b[" in seen.getvalue()
    assert re.sub(r"\x1b\[\d*m", "", seen.getvalue()) == plain.getvalue() == parser_of("infer").format_help()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not command_parser.has_colours(seen)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("infr", "tilelab: error: there is no command 'infr'; did you mean infer"),
        ("infer a.tif -m superalloy --overvew x", "tilelab infer: error: there is no option --overvew; did you mean"),
        ("infer a.tif -m superalloy --output x", "did you mean --out"),
        ("infer a.tif -m superalloy --precision bf61", "did you mean bf16?"),
        ("infer a.tif", "tilelab infer: error: .*--model.*`tilelab models`"),
        ("eval a.tif b.tif c.tif", "tilelab eval: error: 'c.tif' is one too many"),
        ("plan a.tif -m superalloy --frobnicate", r"there is no option --frobnicate \(see `tilelab plan --help`\)"),
        ("infer a.tif -m superalloy --range 5", "tilelab infer: error: .*LOW:HIGH.*see `tilelab infer --help`"),
        ("completion tcsh", "tilelab completion: error"),
    ],
)  # fmt: skip
def test_an_error_of_usage_is_one_line_that_names_the_page(words: str, message: str) -> None:
    code, out, err = said_by(*words.split())
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert re.search(message, line)
    assert "--help`)" in line


def test_a_model_or_page_that_was_meant() -> None:
    assert "did you mean superalloy" in said_by("plan", "a.tif", "--model", "superaloy")[2]
    assert "did you mean axon?" in said_by("models", "axom")[2]
    assert "or infer" in said_by("help", "infor")[2]


def test_a_file_in_the_place_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("big.tif").touch()
    assert "tilelab infer big.tif --model superalloy" in said_by("big.tif")[2]


def test_nothing_is_meant_by_a_word_like_none() -> None:
    assert did_you_mean("xyzzy", COMMANDS) == ""
    assert did_you_mean("", COMMANDS) == ""


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("infer a.tif -m m --range -5:30", "range", (-5.0, 30.0)),
        ("infer a.tif -m m --range -5:-1 --fit", "range", (-5.0, -1.0)),
        ("infer a.tif -m m --clip -1,1", "clip", (-1.0, 1.0)),
        ("infer a.tif -m m --nan -.5", "nan", -0.5),
        ("infer a.tif -m m --mean -3.5,2", "mean", (-3.5, 2.0)),
        ("infer a.tif -m m --clip=-1,1", "clip", (-1.0, 1.0)),
    ],
)
def test_numbers_below_zero_are_values(words: str, name: str, value: object) -> None:
    assert getattr(build_parser("infer").parse_args(words.split()), name) == value


def test_behind_two_dashes_words_are_left_alone() -> None:
    args = build_parser("info").parse_args(["info", "--json", "--", "-5.tif", "--json"])
    assert (args.json, args.paths) == ("-", ["-5.tif", "--json"])


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("info --json a.tif", "info --json=- a.tif"),
        ("info a.tif --json", "info a.tif --json=-"),
        ("info --json out.json a.tif", "info --json=out.json a.tif"),
        ("eval p t --json scores.txt", "eval p t --json=scores.txt"),
        ("eval p t --json old.txt", "eval p t --json=old.txt"),
        ("eval --json here t", "eval --json=- here t"),
        ("measure --json a.png", "measure --json=- a.png"),
        ("doctor --json", "doctor --json=-"),
        ("bench --json B.JSON", "bench --json=B.JSON"),
    ],
)
def test_json_takes_a_file_by_its_name(words: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    for name in ("a.png", "old.txt"):
        Path(name).touch()
    assert name_json(words.split()) == meant.split()


def test_json_is_one_thing_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    labels = np.kron(np.eye(4, dtype=np.uint8), np.ones((16, 16), np.uint8))
    tifffile.imwrite("a.tif", labels)
    for words in (["info", "a.tif"], ["eval", "a.tif", "a.tif"], ["measure", "a.tif"], ["models", "superalloy"]):
        code, out, err = said_by(*words, "--json")
        assert code == 0, err
        printed = json.loads(out)
        code, out, err = said_by(*words, "--json", "file.json")
        assert code == 0, err
        assert out  # the text as ever
        assert json.loads(Path("file.json").read_text()) == printed
    for words in (["plan", "a.tif", "-m", "superalloy", "--speed", "1"], ["doctor"]):
        assert said_by(*words, "--json", "one.json")[0] == 0
        assert isinstance(json.loads(Path("one.json").read_text()), dict)
    assert tifffile.imread("a.tif").shape == (64, 64)


def test_models_are_listed_with_their_cards() -> None:
    code, out, _ = said_by("models")
    assert code == 0
    known = json.loads(said_by("models", "--json")[1])
    assert {model["name"] for model in known} >= {"superalloy", "axon"}
    for model in known:
        assert model["name"] in out.splitlines()
        assert 0.5 < model["mean_iou"] < 1
        assert model["licence"] in out
        card = said_by("models", model["name"])[1]
        assert card.startswith(f"# {model['name']}\n")
        assert "## Scores" in card


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_every_command_and_option(shell: str) -> None:
    code, script, _ = said_by("completion", shell)
    assert code == 0
    for command in COMMANDS:
        assert command in script
        for flag in re.findall(r"^  (?:-\w, )?--([\w-]+)", parser_of(command).format_help(), re.MULTILINE):
            assert f"{flag}" in script


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("tilelab in", {"infer", "info"}),
        ("tilelab infer --over", {"--overview", "--overview-size", "--overlap"}),
        ("tilelab infer a.tif --model super", {"superalloy", "superalloy-unet", "superalloy-pmcanet"}),
        ("tilelab infer a.tif --precision ", {"auto", "fp32", "bf16", "fp16", "int8"}),
        ("tilelab help me", {"measure"}),
    ],
)
def test_bash_completes(line: str, found: set[str], tmp_path: Path) -> None:
    bash = subprocess.run(["bash", "--version"], capture_output=True, check=False).returncode == 0
    if not bash:
        pytest.skip("no bash here")
    script = tmp_path / "completion.bash"
    script.write_text(said_by("completion", "bash")[1])
    words = line.split(" ")
    ask = f"COMP_WORDS=({' '.join(shlex.quote(word) for word in words)}); COMP_CWORD={len(words) - 1}; _tilelab"
    done = subprocess.run(
        ["bash", "-c", f'. "{script}"; {ask}; printf "%s\\n" "${{COMPREPLY[@]}}"'],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert set(done.stdout.split()) >= found - {"--overlap"}
    assert all(word.startswith(words[-1]) for word in done.stdout.split())


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_scripts(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    script = tmp_path / "script"
    script.write_text(said_by("completion", shell)[1])
    if shell == "zsh":
        subprocess.run(["zsh", "-n", str(script)], check=True)
        return
    for line, wanted in (
        ("tilelab in", {"infer", "info"}),
        ("tilelab infer a.tif --overl", {"--overlap"}),
        ("tilelab infer a.tif --model super", {"superalloy", "superalloy-unet"}),
        ("tilelab train super", {"superalloy-quick"}),
    ):
        asked = f"source {script}; complete -C {shlex.quote(line)}"
        done = subprocess.run(["fish", "--no-config", "-c", asked], capture_output=True, text=True, check=True)
        assert {said.split("\t")[0] for said in done.stdout.splitlines()} >= wanted


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_a_minute_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    pace = Pace("segmenting", clock)
    pace.begin(100)
    for second in range(1, 301):
        clock.now = second
        pace.show(100 + second, 400, "3 MP/s")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tilelab: segmenting 28%, 3 MP/s, about 5 min left"  # early, as it will be long
    assert len(lines) == 5
    assert lines[-1].startswith("tilelab: segmenting 88%, 3 MP/s, about 50 s left")


def test_nothing_is_said_of_what_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    pace = Pace("measuring", clock)
    for second in range(60):
        clock.now = second
        pace.show(second, 59)
    assert capsys.readouterr().err == ""


def test_the_end_of_a_run_says_what_was_found_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = np.zeros((64, 100), np.uint8)
    values[:16] = 255  # a quarter: the greater of two constant logits is that of class 1
    np.save("a.npy", values)
    words = ["infer", "a.npy", "-m", "identity:2", "--pixel-size", "500", "--tile", "32", "--overlap", "8"]
    code, _, said = said_by(*words, "--overview", "look.png")
    assert code == 0, said
    rows = said.splitlines()
    assert any(re.match(r"  found +\S+ .*%  .* (µm²|um2)$", row) for row in rows)
    shares = [float(found) for found in re.findall(r" ([\d.]+)%  ", said)]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    areas = [float(found.replace(",", "")) for found in re.findall(r"%  ([\d.,]+) (?:µm²|um2)", said)]
    assert sum(areas) == pytest.approx(64 * 100 * 0.25, rel=0.01)
    assert [row.split()[0] for row in rows[-3:]] == ["result", "picture", "to"]
    assert "tilelab view a.identity-2.ome.zarr" in rows[-1]
    out = said_by(*words, "-o", "a.png")[2]
    assert "found" in out  # what a file was made of is counted before it goes
    assert "tilelab view" not in out


@pytest.mark.parametrize(
    ("value", "axes", "text"),
    [
        (12.0, 2, "12 nm"),
        (5e6, 2, "5 µm"),
        (1.5e12, 2, "1.5 mm"),
        (3.2e8, 2, "320 µm"),
        (4e9, 3, "4 µm"),
        (1.75e7, 3, "0.0175 µm"),
        (0.0, 2, "0 nm"),
    ],
)
def test_areas_in_the_unit_that_suits(value: float, axes: int, text: str) -> None:
    assert area_text(value, axes).replace("um", "µm").rstrip("²³23") == text.rstrip("²³23")


def test_a_user_who_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "~nobody-of-this-name/net.onnx"]) == 2
    assert "home folder" in capsys.readouterr().err
