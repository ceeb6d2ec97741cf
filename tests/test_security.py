"""What SECURITY.md promises of the source: nothing in it runs code from data, and nothing else uses the network."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("minidl", "examples") for path in (ROOT / folder).rglob("*.py"))
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
RUN_CODE = {"eval", "exec", "pickle.load", "pickle.loads", "marshal.loads", "os.system", "os.popen", "torch.load"}
RUN_CODE |= {"pickle.Unpickler", "shelve.open", "yaml.load", "joblib.load", "runpy.run_path", "runpy.run_module"}
NETWORK = {"urllib", "http", "socket", "ssl", "ftplib", "requests", "httpx", "huggingface_hub"}


def dotted(node):
    """'pickle.load' for the expression pickle.load, '' for expressions of other kinds."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def calls(tree):
    """(name of the function, the call) of all calls in a file."""
    return [(dotted(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def runs_code(tree):
    """The calls that can run code from data. They must use the module's name: a function that is imported hides it."""
    found = [name for name, _ in calls(tree) if name in RUN_CODE]
    options = [(name, each) for name, call in calls(tree) for each in call.keywords]
    for name, option in options:
        if option.arg in ("allow_pickle", "shell") and getattr(option.value, "value", True) is not False:
            found.append(f"{name}({option.arg})")
    modules = {name.rpartition(".")[0] for name in RUN_CODE} - {"", "os", "torch"}
    return found + [f"from {node.module}" for node in ast.walk(tree) if getattr(node, "module", None) in modules]


def test_no_file_runs_code_from_data():
    assert len(TREES) > 150
    assert {path: runs_code(tree) for path, tree in TREES.items() if runs_code(tree)} == {}


@pytest.mark.parametrize(
    "harm",
    [
        "eval(text)",
        "import pickle; pickle.load(file)",
        "from pickle import loads",
        "np.load(file, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "pickle.Unpickler(file).load()",
    ],
)
def test_such_code_would_be_found(harm):
    assert runs_code(ast.parse(harm))


def test_no_class_is_derived_from_pythons_unpickler():
    """CIFAR's pickles are read by minidl/data/_cifar_pickle.py, which calls nothing that a file names."""
    assert [path for path, node in classes() if "pickle.Unpickler" in map(dotted, node.bases)] == []


def classes():
    return [(path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def test_only_downloads_use_the_network():
    using = set()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            using |= {path for name in names if name.split(".")[0] in NETWORK}
    assert using == {"minidl/data/download.py", "examples/models/weights.py"}


def test_every_address_is_encrypted():
    """http is left to links in comments, to names of formats, and to this machine."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "minidl" / "data").glob("*.py"))
    assert re.findall(r"[\"']http://[^\"']*", source) == []


def test_the_files_that_the_promises_name_exist():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:bash )?[\w.]+/[\w./]+)[` ]", text)
    assert len(named) >= 8
    assert [name for name in named if not (ROOT / name.removeprefix("bash ")).exists()] == []
