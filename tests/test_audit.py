"""What .ci/audit.py makes of the answers of pip-audit."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

CI = Path(__file__).parents[1] / ".ci"


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", CI / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.audit


CLEAN = {"name": "numpy", "version": "2.4.6", "vulns": []}
BAD = {"name": "pillow", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.0"]}]}
SKIPPED = {"name": "tqdm", "skip_reason": "Dependency not found on PyPI"}


@pytest.fixture
def answering(tmp_path):
    """A command that answers as pip-audit does: what it prints for each database, and its exit status."""

    def command(pypi, osv, status=0):
        answers = {"pypi": pypi, "osv": osv}
        program = tmp_path / "fake.py"
        program.write_text(
            f"import sys\nanswer = {answers!r}[sys.argv[sys.argv.index('--vulnerability-service') + 1]]\n"
            f"print(answer if answer.startswith('{{') else '')\nprint(answer, file=sys.stderr)\nsys.exit({status})\n"
        )
        return [sys.executable, str(program)]

    return command


def report(*packages):
    return json.dumps({"dependencies": packages, "fixes": []})


def test_nothing_found_passes(audit, answering, capsys):
    assert audit(answering(report(CLEAN), "unused")) == 0
    assert capsys.readouterr().out == "audited 1 packages with pypi: 0 known vulnerabilities\n"


def test_a_vulnerability_fails_and_is_named(audit, answering, capsys):
    assert audit(answering(report(CLEAN, BAD), "unused", status=1)) == 1
    assert "VULNERABLE: pillow 1.0: PYSEC-1, fixed in 2.0\n" in capsys.readouterr().out


def test_the_second_database_is_asked_where_the_first_does_not_answer(audit, answering, capsys):
    assert audit(answering("ConnectionError: no network", report(BAD), status=1)) == 1
    assert "pypi: ConnectionError: no network\nVULNERABLE" in capsys.readouterr().out


@pytest.mark.parametrize("pypi", [report(SKIPPED), "ConnectionError: no network", "", report()])
def test_no_answer_is_no_audit(audit, answering, capsys, pypi):
    """pip-audit says `No known vulnerabilities found` if it could look up none of the packages."""
    assert audit(answering(pypi, "ConnectionError: no network")) == 0
    out = capsys.readouterr().out
    assert out.endswith("NOT AUDITED: no database of vulnerabilities could be asked\n")
    assert "osv: ConnectionError: no network\n" in out and "audited " not in out


def test_a_package_that_was_skipped_is_named(audit, answering, capsys):
    assert audit(answering(report(CLEAN, SKIPPED), "unused")) == 0
    out = capsys.readouterr().out
    assert "NOT AUDITED: tqdm: Dependency not found on PyPI\naudited 1 packages" in out


def test_every_constraint_is_one_exact_version():
    lines = (CI / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("#")[0].strip() for line in lines]
    pins = [pin for pin in pins if pin]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    names = [re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in pins]
    assert len(names) == len(set(names))
    assert {"numpy", "pillow", "threadpoolctl", "tqdm", "safetensors", "torch", "setuptools", "pip-audit"} <= set(names)
