"""Look up the packages of constraints.txt in databases of known vulnerabilities, with pip-audit.

Fails if a package has a known vulnerability. If no database can be reached, it prints NOT AUDITED, with the reason, and
does not fail: that says nothing about the packages.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
DATABASES = ("pypi", "osv")


def main() -> int:
    """Install pip-audit and ask one database after the other. Returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        python = f"{folder}/bin/python"
        try:
            run(sys.executable, "-m", "venv", folder)
            run(python, "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS), "pip-audit")
        except subprocess.CalledProcessError as error:
            print(f"NOT AUDITED: cannot install pip-audit: {last_line(error.stderr)}")
            return 0
        return audit([python, "-m", "pip_audit", "--disable-pip", "--no-deps", "--requirement", str(CONSTRAINTS)])


def audit(command: list[str]) -> int:
    """Run this pip-audit with one database after the other until one knows the packages. Returns the exit status."""
    for database in DATABASES:
        options = ["--vulnerability-service", database, "--format", "json", "--progress-spinner", "off"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600)
        try:
            packages = json.loads(done.stdout)["dependencies"]
        except (ValueError, KeyError, TypeError):  # pip-audit exits with 1 for errors and for vulnerabilities
            print(f"{database}: {last_line(done.stderr)}")
            continue
        # Where the database does not answer, pip-audit skips packages, and then finds no vulnerability in the others.
        skipped = [package for package in packages if "skip_reason" in package]
        if len(skipped) < len(packages):
            return judge(database, [package for package in packages if "skip_reason" not in package], skipped)
        print(f"{database}: {skipped[0]['skip_reason'] if skipped else 'no packages'}")
    print("NOT AUDITED: no database of vulnerabilities could be asked")
    return 0


def judge(database: str, audited: list[dict], skipped: list[dict]) -> int:
    """Print what was found. Returns 1 if a package has a known vulnerability."""
    for package in skipped:
        print(f"NOT AUDITED: {package['name']}: {package['skip_reason']}")
    found = [(package, each) for package in audited for each in package["vulns"]]
    for package, each in found:
        fixed = ", ".join(each.get("fix_versions", [])) or "no version"
        print(f"VULNERABLE: {package['name']} {package['version']}: {each['id']}, fixed in {fixed}")
    print(f"audited {len(audited)} packages with {database}: {len(found)} known vulnerabilities")
    return 1 if found else 0


def run(*command: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, capture_output=True, text=True, check=True)


def last_line(text: str) -> str:
    """The last line of a program's output, which has the error."""
    return (text.strip().splitlines() or ["no output"])[-1]


if __name__ == "__main__":
    sys.exit(main())
