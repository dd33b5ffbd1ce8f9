"""Programs that a model wrote: what counts as a pass, and what a program cannot do."""

import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hispec.datasets.execution import check_program
from hispec.errors import UnavailableError


def test_a_program_that_reaches_its_end_passes():
    assert check_program("import math, re\nfrom typing import List\nassert math.gcd(4, 6) == 2")


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 == 2",
        "def f(:",
        "raise KeyboardInterrupt",
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "raise SystemExit",
        "def f(n): return f(n + 1)\nf(0)",
        "import numpy",
        "import hispec",
        "x = '\ud800\n",
    ],
)
def test_an_error_or_an_early_exit_fails(program):
    assert not check_program(program)


def test_an_endless_loop_and_an_endless_sleep_are_ended():
    assert not check_program("while True: pass", timeout_s=0.5)
    assert not check_program("import time\ntime.sleep(1e6)", timeout_s=0.5)


def test_memory_is_limited():
    program = "x = bytearray(300 << 20)"
    assert check_program(program, memory_bytes=1 << 30)
    assert not check_program(program, memory_bytes=200 << 20)


def test_a_gigabyte_of_output_goes_nowhere(capfd):
    assert check_program("for _ in range(1000): print('x' * 10**6)", timeout_s=30)
    assert capfd.readouterr() == ("", "")


CAUGHT = """
try:
    {attempt}
except {error}:
    pass
else:
    raise SystemExit("it could")
"""


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        ("open('/tmp/hispec-written', 'w')", "PermissionError"),
        ("open('here', 'ab')", "PermissionError"),
        ("__import__('os').mkdir('folder')", "PermissionError"),
        ("__import__('os').remove('/tmp/nothing-here')", "PermissionError"),
        ("__import__('shutil').rmtree('/tmp/nothing-here')", "PermissionError"),
        ("__import__('os').fork()", "PermissionError"),
        ("__import__('os').system('true')", "PermissionError"),
        ("__import__('os').kill(__import__('os').getppid(), 9)", "PermissionError"),
        ("__import__('subprocess').run(['true'])", "PermissionError"),
        ("__import__('threading').Thread(target=print).start()", "RuntimeError"),
        ("__import__('socket').create_connection(('127.0.0.1', 80))", "PermissionError"),
        ("__import__('ctypes').CDLL(None)", "PermissionError"),
        ("__import__('resource').setrlimit(0, (-1, -1))", "PermissionError"),
    ],
)
def test_what_a_program_may_not_do_is_refused(attempt, error):
    assert check_program(CAUGHT.format(attempt=attempt, error=error))


def test_a_program_sees_an_empty_folder_and_an_empty_environment(monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    assert check_program("import os\nassert os.listdir('.') == []\nassert set(os.environ) <= {'LC_CTYPE'}")  # PEP 538


def unguarded(attempt):
    """Whether an attempt fails for the operating system's limits alone: in the sandbox's process, before its guard."""
    sandbox = Path(sys.modules["hispec.datasets.execution"].__file__).with_name("sandbox.py")
    source = f"{sandbox.read_text()}".replace('if __name__ == "__main__":\n    main()', "")
    source += (
        f"\nleave_network()\ndrop_privileges()\nlimit(20, 1 << 30)\ntry:\n    {attempt}\nexcept OSError:\n    pass\n"
    )
    source += "else:\n    raise SystemExit('it could')\n"
    return subprocess.run([sys.executable, "-I", "-S", "-B", "-c", source], check=False, timeout=60).returncode == 0


def test_processes_and_files_are_limited_by_the_operating_system_too():
    assert unguarded("os.fork()")
    assert unguarded("[open('/dev/null') for _ in range(40)]")
    with tempfile.NamedTemporaryFile() as file:  # not in pytest's folder, which only its own user may enter
        Path(file.name).chmod(0o666)
        assert not unguarded(f"open({file.name!r}, 'wb', buffering=0)")
        assert unguarded(f"open({file.name!r}, 'wb', buffering=0).write(b'x')")


def test_the_network_is_out_of_reach_where_namespaces_are_granted():
    if subprocess.run(["unshare", "--user", "--net", "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this machine grants no network namespace")
    with socket.create_server(("127.0.0.1", 0)) as server:
        attempt = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=5)"
        assert unguarded(attempt)


def test_a_machine_without_such_limits_is_told(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UnavailableError, match="Linux"):
        check_program("pass")
