"""`detris demo` in a process of its own: start, answer, stop; and what it exports."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from detris_peft.cli import main
from tests.demo.client import call, upload
from tests.demo.conftest import checkpoint, photo  # noqa: F401  fixtures

# Reports every connection to another machine and every lookup of a name; `sys.argv` are the arguments of detris.
RECORD = """
import os, socket, sys
def record(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in ("127.0.0.1", "::1"):
        os.write(2, f"CONNECT {arguments[1]}\\n".encode())
    if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost", "::1", None):
        os.write(2, f"LOOKUP {arguments[0]}\\n".encode())
sys.addaudithook(record)
from detris_peft.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_start_answer_and_stop(checkpoint, photo, tmp_path, signum, code):  # noqa: F811
    for name in ("work", "temporary"):
        (tmp_path / name).mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "HF_HOME": str(tmp_path / "hub")}
    for name in ("HF_HUB_OFFLINE", "GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        environment.pop(name, None)
    command = [sys.executable, "-c", RECORD, "demo", "--checkpoint", str(checkpoint), "--port", "0", "--device", "cpu"]
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            command, cwd=tmp_path / "work", env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.fullmatch(r"Serving run/best on (http://127\.0\.0\.1:\d+/) \(stop with Ctrl-C\)\n", line)
            assert match, (line, (tmp_path / "errors").read_text())
            event, _ = call(match[1], "segment", upload(match[1], photo), "the red circle", 0.35)
            assert event == "complete"
            with pytest.raises(SystemExit, match="expected a free port"):
                main(["demo", "--checkpoint", str(checkpoint), "--port", match[1].rstrip("/").rsplit(":", 1)[1]])
            process.send_signal(signum)
            assert process.wait(60) == code
        finally:
            process.kill()
    printed = (tmp_path / "errors").read_text()
    assert "Traceback" not in printed
    assert not [line for line in printed.splitlines() if line.startswith(("CONNECT", "LOOKUP"))]
    assert not [*(tmp_path / "work").iterdir()]
    assert not [name for name in os.listdir(tmp_path / "temporary") if "demo" in name or "gradio" in name]


def test_a_space_is_replaced_only_with_overwrite(checkpoint, tmp_path, capsys):  # noqa: F811
    arguments = ["demo", "--checkpoint", str(checkpoint), "--export_space", str(tmp_path / "space")]
    main(arguments)
    assert capsys.readouterr().out == f"wrote {tmp_path / 'space'}; its README.md says how to publish it\n"
    (tmp_path / "space" / "old").touch()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert "--overwrite" in str(ended.value.code)
    assert (tmp_path / "space" / "old").exists()
    main([*arguments, "--overwrite"])
    assert not (tmp_path / "space" / "old").exists()
    names = {"app.py", "README.md", "requirements.txt", "checkpoint", "detris_peft", "LICENSE", ".detris_peft"}
    assert {path.name for path in (tmp_path / "space").iterdir()} == names
