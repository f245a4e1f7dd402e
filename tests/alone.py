"""Asks a published student where nothing is installed but the wheel: in Python, from the shell and, with the extra
`serve`, over HTTP. `make wheel` runs it in a fresh environment, without a compiler on the PATH."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import kgdistil
from kgdistil.answer import native

STUDENT = Path(__file__).resolve().parent.parent / "results" / "students" / "wn18rr-complex-16B"


def main() -> None:
    heavy = [name for name in ("torch", "pandas", "scipy") if importlib.util.find_spec(name)]
    assert not heavy and shutil.which("g++") is None, f"not alone: {heavy}"
    assert native.libraries(), "the wheel holds no compiled scanner"
    assert "site-packages" in kgdistil.__file__, f"{kgdistil.__file__} is not what was installed"
    student = kgdistil.load_student(STUDENT)
    query = {"head": student.entities[7], "relation": student.relations[3]}
    wanted = student.predict(**query, k=3)["entity"]
    environment = {**os.environ, "PATH": str(Path(sys.executable).parent)}
    command = ["kgdistil", "predict", str(STUDENT), "--head", query["head"], "--relation", query["relation"], "-k", "3"]
    told = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True, env=environment).stdout
    assert [row["entity"] for row in json.loads(told)] == wanted
    over = ["Python", "the shell"]
    if importlib.util.find_spec("uvicorn"):
        assert over_http(query, environment) == wanted
        over.append("HTTP")
    version = ".".join(map(str, sys.version_info[:2]))
    print(f"Python {version}, {native.default()}: the same answers from {', '.join(over)}")


def over_http(query: dict[str, str], environment: dict[str, str]) -> list[str]:
    port = "18437"
    server = subprocess.Popen(["kgdistil", "serve", str(STUDENT), "--port", port], env=environment)
    try:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/predict",
            json.dumps({**query, "k": 3}).encode(),
            {"Content-Type": "application/json"},
        )
        for _ in range(100):
            try:
                with urllib.request.urlopen(asked, timeout=10) as answer:
                    told = json.load(answer)
                break
            except OSError:
                time.sleep(0.1)
        return [row["entity"] for row in (told["answers"] if isinstance(told, dict) else told)]
    finally:
        server.terminate()
        assert server.wait(20) == 0


if __name__ == "__main__":
    main()
