"""Signals end a program in one line, whatever it does meanwhile: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clipocr.shared.ahead import process_pool
from clipocr.shared.interrupts import STOP_SIGNALS, collected

HEAD = """
import os, signal, sys, time
from clipocr.shared.interrupts import Interrupted, ending, install, working
def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)
def command(work):
    try:
        with working():
            work()
    except Interrupted as e:
        line, code = ending(e.signal_number)
        print(line, file=sys.stderr)
        sys.exit(code)
install()
"""


def run(body: str, folder: Path, *, before: str = "") -> subprocess.CompletedProcess[str]:
    program = folder / "program.py"
    program.write_text(before + HEAD + body)
    return subprocess.run([sys.executable, str(program)], capture_output=True, text=True)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_lets_the_work_clean_up(number: int, tmp_path: Path) -> None:
    done = run(
        f"""
def work():
    try:
        send({number})
        time.sleep(60)
    finally:
        print("cleaned up")
command(work)
""",
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (128 + number, "cleaned up\n")
    name = signal.Signals(number).name
    is_ctrl_c = number == signal.SIGINT
    assert done.stderr == ("Interrupted.\n" if is_ctrl_c else f"Stopped by {name}.\n")


@pytest.mark.parametrize(
    "work",
    [
        "import turns_it_into_an_import_error",
        "import swallows_it",
        "\ttry: send()\n\texcept BaseException: raise ImportError('a module is missing')",
        "\ttry: send()\n\texcept BaseException: pass",
        "\tclass Thing:\n\t\tdef __del__(self): send(); time.sleep(60)\n\tThing()",
    ],
)
def test_nothing_takes_it_for_something_else(work: str, tmp_path: Path) -> None:
    handled = "import os, signal\ntry: os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException: "
    swallows = f"{handled}pass"
    (tmp_path / "swallows_it.py").write_text(swallows)
    (tmp_path / "turns_it_into_an_import_error.py").write_text(f"{handled}raise ImportError('no')")
    body = work if work.startswith("\t") else f"\t{work}"
    done = run(f"def work():\n{body}\ncommand(work)\n", tmp_path)
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


@pytest.mark.parametrize("body", ["send()", "command(int); send()"])
def test_before_and_after_the_work(body: str, tmp_path: Path) -> None:
    done = run(f"{body}\ntime.sleep(60)\n", tmp_path)
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


def test_a_second_ctrl_c_waits_for_nothing_and_a_second_sigterm_does(tmp_path: Path) -> None:
    body = """
def work():
    try:
        send()
    finally:
        send(signal.SIGTERM)
        print("still here", flush=True)
        send()
        print("not reached", flush=True)
command(work)
"""
    done = run(body, tmp_path)
    assert (done.returncode, done.stdout) == (130, "still here\n")
    assert done.stderr == "Interrupted.\n"


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    done = run(
        "send(signal.SIGHUP)\nprint('goes on')\n",
        tmp_path,
        before="import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)  # As by nohup.\n",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")


def test_the_program_ends_by_it_while_it_begins(tmp_path: Path) -> None:
    """Python reads this file first of all: a signal that comes while the command is imported."""
    (tmp_path / "click.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    done = subprocess.run(
        [sys.executable, "-m", "clipocr", "--help"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def blocked_signals() -> set[int]:
    return set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))


def test_workers_never_see_what_is_for_the_command() -> None:
    """Not the first alone: an executor starts the others when there is work for them."""
    with process_pool(2) as pool:
        found = [pool.submit(blocked_signals) for _ in range(4)]
        for future in found:
            assert future.result() == set(STOP_SIGNALS) - {signal.SIGTERM}
    assert blocked_signals() == set()


def test_what_is_collected_is_acknowledged_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with collected("stopping ...") as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert capfd.readouterr().err == "\nSIGTERM: stopping ...\n"
    assert stop == [signal.SIGTERM] * 2
