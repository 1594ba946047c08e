"""Adds up a test run: a line per folder, then "N passed, M failed, K skipped".

    test_summary.py FOLDER     holds ctest.xml and an XML file per GoogleTest program

A program's cases count where it wrote them; a program that left no file, or that ctest saw fail without a failing
case (a crash, a time-out), counts as one test.
"""

import collections
import pathlib
import sys
import xml.etree.ElementTree as ElementTree


def gtest_cases(path):
    """passed, failed, skipped"""
    counts = collections.Counter()
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        if case.find("failure") is not None:
            counts["failed"] += 1
        elif case.get("result") in ("skipped", "suppressed") or case.find("skipped") is not None:
            counts["skipped"] += 1
        else:
            counts["passed"] += 1
    return counts


def program_result(test):
    if test.get("status") == "run":
        return "passed"
    return "skipped" if test.get("status") in ("notrun", "disabled") and test.find("skipped") is not None else "failed"


def main():
    folder = pathlib.Path(sys.argv[1])
    files = {path.stem.removeprefix("test_"): path for path in folder.glob("test_*.xml")}
    folders = collections.defaultdict(collections.Counter)
    seconds = collections.Counter()
    slowest = []
    for test in ElementTree.parse(folder / "ctest.xml").getroot().iter("testcase"):
        name = test.get("name")
        part = name.split(".")[0]
        result = program_result(test)
        counts = collections.Counter({result: 1})
        if (path := files.get(name.replace(".", "_"))) and (cases := gtest_cases(path)):
            if result == "failed" and not cases["failed"]:
                cases["failed"] += 1
            counts = cases
        folders[part] += counts
        seconds[part] += float(test.get("time") or 0)
        slowest.append((float(test.get("time") or 0), name))

    print(f"\n{'folder':<12}{'passed':>8}{'failed':>8}{'skipped':>8}{'seconds':>9}")
    for part in sorted(folders):
        row = folders[part]
        print(f"{part:<12}{row['passed']:>8}{row['failed']:>8}{row['skipped']:>8}{seconds[part]:>9.1f}")
    print("slowest: " + ", ".join(f"{name} {time:.1f} s" for time, name in sorted(slowest, reverse=True)[:5]))
    total = sum(folders.values(), collections.Counter())
    print(f"\n{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    sys.exit(1 if total["failed"] or not total["passed"] else 0)


if __name__ == "__main__":
    main()
