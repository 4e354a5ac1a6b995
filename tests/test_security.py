"""What is never done with files: the source is read for it."""

import ast
from pathlib import Path

import pytest

import jaxpipe

SOURCES = sorted(Path(jaxpipe.__file__).parent.rglob("*.py"))
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch"}
RUNNING = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen",
    "urllib.request.urlopen", "requests.get",
}  # fmt: skip


def misdeeds(source: str) -> list[str]:
    """What a source should not do, with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [(node, name) for name in names if name.split(".")[0] in UNPICKLING]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        unpickles = called in ("np.load", "numpy.load") and options.get("allow_pickle") != "False"
        runs = options.get("shell") == "True" or "trust_remote_code" in options
        if called in RUNNING | CALLS or unpickles or runs:
            found.append((node, called))
    return [f"{node.lineno}: {name}" for node, name in found]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from torch import load", "np.load(path)", "yaml.load(text)",
        "np.load(path, allow_pickle=True)", "run(line, shell=True)", "eval(text)",
        "load_dataset(name, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_misdeeds_are_seen(source):
    assert len(misdeeds(source)) == 1


def test_nothing_unpickles_or_runs_what_it_reads():
    assert len(SOURCES) > 100
    found = {path.name: misdeeds(path.read_text()) for path in SOURCES}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_programs_are_started_for_stacks_and_versions_alone():
    users = [path.name for path in SOURCES if "subprocess" in path.read_text()]
    assert sorted(users) == ["environment.py", "stacks.py"]
