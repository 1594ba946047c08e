"""Writes the generated parts of README.md, or checks that they are up to date.

    update_readme.py TABLE_PROGRAM            rewrites README.md
    update_readme.py --check TABLE_PROGRAM    fails and shows the difference where README.md would change

A part stands between `<!-- NAME begins -->` and `<!-- NAME ends -->`: the examples are copied from the marked region
of the files that the tests build and run, the table comes from tests/docs/supports_table.cpp, which asks
fulmen_supports.
"""

import difflib
import pathlib
import re
import subprocess
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXAMPLES = {"examples/attention.cpp": "cpp", "examples/attention.c": "c"}


def example(path, language):
    text = (ROOT / path).read_text()
    region = re.search(r"^[^\n]*README begins[^\n]*\n(.*?)^[^\n]*README ends", text, re.M | re.S).group(1)
    return f"```{language}\n{textwrap.dedent(region)}```\n"


def replace(readme, name, text):
    pattern = re.compile(rf"(<!-- {re.escape(name)} begins -->\n).*?(<!-- {re.escape(name)} ends -->)", re.S)
    new, count = pattern.subn(lambda match: match.group(1) + text + match.group(2), readme)
    if count != 1:
        sys.exit(f"README.md: expected one part named {name}, found {count}")
    return new


def main():
    check = sys.argv[1] == "--check"
    old = (ROOT / "README.md").read_text()
    new = old
    for path, language in EXAMPLES.items():
        new = replace(new, path, example(path, language))
    new = replace(new, "supports", subprocess.run([sys.argv[-1]], capture_output=True, text=True, check=True).stdout)
    if not check:
        (ROOT / "README.md").write_text(new)
    elif new != old:
        sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), "README.md", "generated"))
        sys.exit("README.md is out of date: python3 scripts/update_readme.py build/test/tests/supports_table")


if __name__ == "__main__":
    main()
