"""The pages name files that exist, and no file says what does not belong in a product.

    docs_test.py SOURCE_FOLDER
"""

import pathlib
import re
import shutil
import subprocess
import sys
import unittest

ROOT = pathlib.Path(sys.argv.pop(1)).resolve()
# One bracket in each pattern, so that this file does not match itself.
FORBIDDEN = [
    r"p[y]pi\.org", r"pythonh[o]sted", r"deb\.d[e]bian\.org", r"snapshot\.d[e]bian", r"registry\.n[p]mjs",
    r"(?<![\w.])/w[o]rk/", r"(?<![\w.])/r[o]ot/", r"\.\./s[h]ared\b", r"\.l[i]brary/", r"DEVEL[O]PERS\.md",
    r"\bsub-?a[g]ents?\b", r"\b[i]ssue[3456]\b", r"B[R]IEF\.md",
]
MAX_BYTES = 2_000_000


def tracked_files():
    result = shutil.which("git") and subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if result and result.returncode == 0 and result.stdout:
        return [ROOT / name for name in result.stdout.split("\0") if name and (ROOT / name).is_file()]
    skipped = {"build", "dist", ".fulmen", ".git", ".venv"}  # not a clone: what an archive holds
    return [path for path in ROOT.rglob("*")
            if path.is_file() and not skipped & set(path.relative_to(ROOT).parts) and "__pycache__" not in path.parts]


def pages():
    return [path for path in tracked_files() if path.suffix == ".md"]


def exists(path):
    if "*" in path:
        return any(ROOT.glob(path))
    return (ROOT / path).exists()


class Pages(unittest.TestCase):
    def test_links_lead_to_files(self):
        for page in pages():
            for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
                if not re.match(r"[a-z]+:", target):
                    with self.subTest(page=page.name, link=target):
                        self.assertTrue((page.parent / target).exists())

    def test_paths_in_code_spans_exist(self):
        """`folder/file` where folder is one of the tree's. Names in capitals stand for something: `tests/FOLDER/NAME`."""
        folders = {path.relative_to(ROOT).parts[0] for path in tracked_files()} - {"build"}
        count = 0
        for page in pages():
            for span in re.findall(r"`([\w.*/-]+/[\w.*/-]*)`", page.read_text()):
                head, _, rest = span.partition("/")
                names_a_file = "." in rest or rest.endswith("/")  # a bare folder may be one that is yet to come
                if head in folders and names_a_file and not re.search(r"(?<![A-Za-z])[A-Z]{2,}(?![A-Za-z]|\.md)", rest):
                    count += 1
                    with self.subTest(page=str(page.relative_to(ROOT)), path=span):
                        self.assertTrue(exists(span.rstrip("/")))
        self.assertGreater(count, 10, "the pattern finds paths at all")

    def test_index_lists_every_page(self):
        index = (ROOT / "docs" / "README.md").read_text()
        for page in (ROOT / "docs").glob("*.md"):
            if page.name != "README.md":
                with self.subTest(page=page.name):
                    self.assertIn(f"]({page.name})", index)

    def test_readme_names_targets_of_the_makefile(self):
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
        for page in pages():
            for target in re.findall(r"`make ([a-z-]+)", page.read_text()):
                with self.subTest(page=page.name, target=target):
                    self.assertIn(target, targets)


class Tree(unittest.TestCase):
    def test_no_foreign_words(self):
        pattern = re.compile("|".join(FORBIDDEN), re.I)
        for path in tracked_files():
            data = path.read_bytes()
            if b"\0" in data[:4096]:
                continue
            for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
                if match := pattern.search(line):
                    with self.subTest(file=f"{path.relative_to(ROOT)}:{number}"):
                        self.fail(f"contains {match.group(0)!r}")

    def test_no_large_files(self):
        for path in tracked_files():
            with self.subTest(file=str(path.relative_to(ROOT))):
                self.assertLess(path.stat().st_size, MAX_BYTES)


if __name__ == "__main__":
    unittest.main()
