"""Writes a copy of kernels/ in which every wait, fence, barrier, predicate and bound can be changed at run time, one at a time.

    mutate.py TREE OUT

OUT/kernels is the copy, OUT/places.inc its table: a row per place. The copy has the lines of the original, so that reports name them.
Predicates are comparisons and the truth of other operands of if, while, ?:, && and ||; bounds are comparisons that order, and min and
max. What the compiler decides (if constexpr, constexpr, static_assert, template arguments, lengths of arrays) is no place: it is another kernel.
"""

import re
import sys
from pathlib import Path

# What kernels stand on is tested by itself, exhaustively where that is possible.
LEFT_OUT = ("prelude/", "math/", "ptx/")
REMOVABLE = (
    r"__syncthreads\(\);|__syncwarp\(\w*\);|__threadfence(?:_block)?\(\);|ptx::(?:cp_async_commit|griddep_wait|cluster_sync|fence_acq_rel_\w+)\(\);"
    r"|ptx::barrier_(?:sync|arrive)\([^;]*\);"
)
RELAXED = {
    "atomic_add_acq_rel_gpu": "atomic_add_relaxed_gpu",
    "load_acquire_gpu": "load_relaxed_gpu",
}
COMPARISONS = {"<": "LESS", "<=": "LESS_EQUAL", ">": "GREATER", ">=": "GREATER_EQUAL", "==": "EQUAL", "!=": "UNEQUAL"}
OPEN, CLOSE = "([{", ")]}"


def blank(match):
    return re.sub(r"[^\n]", " ", match.group())


def closing(code, start):
    """Index of the bracket that closes the one at start."""
    depth = 0
    for i in range(start, len(code)):
        depth += (code[i] in OPEN) - (code[i] in CLOSE)
        if depth == 0:
            return i
    raise ValueError("unbalanced brackets")


def without_other_compilers(code):
    """Blanks preprocessor lines, and what stands there for NVRTC."""
    lines, nesting = [], []
    for line in code.split("\n"):
        directive = re.match(r"\s*#\s*(if|ifdef|ifndef|else|elif|endif)\b(.*)", line)
        if directive:
            word, rest = directive.groups()
            if word.startswith("if"):
                device = re.search(r"defined\((FULMEN_DEVICE_CODE|__CUDACC_RTC__)\)", rest)
                nesting.append(None if not device else "!" in rest[: device.start()])
            elif word == "endif":
                nesting.pop()
            elif nesting[-1] is not None:
                nesting[-1] = not nesting[-1]
        live = not re.match(r"\s*#", line) and all(seen is not False for seen in nesting)
        lines.append(line if live else " " * len(line))
    return "\n".join(lines)


def visible_code(text):
    """The text with everything blanked that holds no place; all positions stay."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'", blank, text, flags=re.S)
    code = without_other_compilers(code)
    code = re.sub(r"(?<=\w)\[[^\[\]]* \? [^\[\]]*\](?=;)", blank, code)  # the length of an array
    chars = list(code)
    for match in re.finditer(r"\bstatic_assert\s*\(|\bif constexpr\s*\(|\btemplate <|(?<![\w)] )\b(?:static |inline )*constexpr [\w:<>, ]+? \w+(?:\[\w*\])? = ", code):
        if match.group().endswith("("):
            end = closing(code, match.end() - 1)
        elif match.group() == "template <":
            depth, end = 0, match.end() - 1
            while True:
                depth += (code[end] == "<") - (code[end] == ">")
                end += 1
                if depth == 0:
                    break
        else:
            end = code.index(";", match.end())
        for i in range(match.start(), end):
            if chars[i] != "\n":
                chars[i] = " "
    return "".join(chars)


def operand_left(code, end):
    """Where the operand of a logical operator or of ?: that ends at `end` begins."""
    i = end
    while i > 0:
        i -= 1
        if code[i] in CLOSE:
            depth = 0
            while True:
                depth += (code[i] in CLOSE) - (code[i] in OPEN)
                if depth == 0:
                    break
                i -= 1
            continue
        stop = code[i] in OPEN + ",;?" or (code[i] == ":" and code[i - 1] != ":" and code[i + 1] != ":")
        stop |= code[i] == "=" and code[i - 1] not in "<>=!" and code[i + 1] != "="
        stop |= code[max(0, i - 1) : i + 1] in ("&&", "||") and code[i + 1] == " "
        stop |= code[max(0, i - 5) : i + 1] == "return"
        if stop:
            return i + 1
    return 0


def operand_right(code, start):
    i = start
    while i < len(code):
        if code[i] in OPEN:
            i = closing(code, i)
        elif code[i] in CLOSE + ",;?" or code[i : i + 4] in (" && ", " || "):
            return i
        elif code[i] == ":" and code[i - 1] == " ":
            return i
        i += 1
    return i


def leaves(code, begin, end):
    """Ranges of the operands of && and || in code[begin:end], through brackets and negations."""
    while begin < end and code[begin].isspace():
        begin += 1
    while end > begin and code[end - 1].isspace():
        end -= 1
    parts, at, i = [], begin, begin
    while i < end:
        if code[i] in OPEN:
            i = closing(code, i)
        elif code[i : i + 2] in ("&&", "||") and code[i - 1] == " ":
            parts.append((at, i))
            at = i + 2
        i += 1
    if parts:
        for part in parts + [(at, end)]:
            yield from leaves(code, *part)
        return
    if code[begin : begin + 1] == "!":
        yield from leaves(code, begin + 1, end)
    elif code[begin : begin + 1] == "(" and closing(code, begin) == end - 1:
        yield from leaves(code, begin + 1, end - 1)
    elif begin < end:
        yield begin, end


def conditions(code):
    for match in re.finditer(r"\b(if|while) \(", code):
        yield match.end(), closing(code, match.end() - 1)
    for match in re.finditer(r"\bfor \(", code):
        end = closing(code, match.end() - 1)
        parts = code[match.end() : end].split(";")
        if len(parts) == 3:
            begin = match.end() + len(parts[0]) + 1
            yield begin, begin + len(parts[1])
    for match in re.finditer(r" (&&|\|\||\?)(?= |\n)", code):
        yield operand_left(code, match.start()), match.start()
        if match.group(1) != "?":
            yield match.end(), operand_right(code, match.end())


def places_of(code):
    """(begin, end, what, changes, text before, text after) of each place; `{}` in the texts is its number."""
    loops = [(match.end(), closing(code, match.end() - 1)) for match in re.finditer(r"\b(?:for|while) \(", code)]
    for match in re.finditer(r"(?<= )(<=|>=|==|!=|<|>)(?= |\n)", code):
        op = match.group()
        twin = {"<": ">", "<=": ">", ">": "<", ">=": "<", "==": "==", "!=": "=="}[op]
        changes = ["false"] if any(begin < match.start() < end for begin, end in loops) else ["true", "false"]  # no endless loops
        changes += ["shifted"] if op not in ("==", "!=") else []
        yield match.start(), match.end(), op, changes, f"{op} FULMEN_{COMPARISONS[op]}({{}}) {twin}", None
    seen = set()
    for begin, end in conditions(code):
        for leaf in leaves(code, begin, end):
            inside = code[leaf[0] : leaf[1]]
            if leaf in seen or re.search(r"(?<= )(<=|>=|==|!=|<|>)(?= |\n)", inside) or re.fullmatch(r"\w+ \w+.*|true|false", inside) or not inside.strip():
                continue
            seen.add(leaf)
            yield leaf[0], leaf[1], inside, ["true", "false"], "FULMEN_TRUTH({})(", ")"
    for match in re.finditer(r"(?<![\w.:])(min|max)\(", code):
        yield match.start(), match.end() - 1, match.group(1), ["first", "second", "shifted"], f"FULMEN_{match.group(1).upper()}({{}})", None
    for match in re.finditer(REMOVABLE, code):
        yield match.start(), match.start(), match.group().rstrip(";"), ["removed"], "FULMEN_UNLESS_REMOVED({}) ", None
    for match in re.finditer(r"__syncthreads_(or|and|count)\(", code):
        yield match.start(), match.end() - 1, match.group()[:-1], ["removed"], f"FULMEN_SYNCTHREADS_{match.group(1).upper()}({{}})", None
    for match in re.finditer(r"ptx::cp_async_wait<([^>]*)>\(\)", code):
        yield match.start(), match.end(), match.group(), ["removed", "shifted"], f"FULMEN_COPY_WAIT({{}}, {match.group(1)})", None
    for match in re.finditer(r"ptx::(\w+)(?=\()", code):
        if match.group(1) in RELAXED:
            yield match.start(), match.end(), match.group(), ["relaxed"], f"FULMEN_ORDERED({{}}, {match.group()}, ptx::{RELAXED[match.group(1)]})", None


def mutate(path, relative, number, table):
    text = path.read_text()
    edits, names = [], {}
    lines = text.split("\n")
    found = sorted(places_of(visible_code(text)), key=lambda place: (place[0], -place[1]))
    for begin, end, what, changes, before, after in found:
        line = text.count("\n", 0, begin)
        earlier = sum(1 for other in lines[:line] if other.strip() == lines[line].strip())
        shown = lines[line].split("//")[0].strip() + (f" ({earlier + 1})" if earlier else "")
        what = " ".join(what.split())
        count = names[shown, what] = names.get((shown, what), 0) + 1
        if count > 1:
            what += f" #{count}"
        if after is None:
            edits.append((begin, end, before.format(number)))
        else:
            edits += [(begin, begin, before.format(number)), (end, end, after)]
        for change in changes:
            table.append((number, change, f"{relative} | {shown} | {what} | {change}"))
        number += 1
    # From the end, so that positions stay; of edits at one position the later found (inner) first.
    order = sorted(range(len(edits)), key=lambda i: (edits[i][0], edits[i][1] != edits[i][0] or edits[i][2] == ")", i), reverse=True)
    for i in order:
        begin, end, new = edits[i]
        text = text[:begin] + new + text[end:]
    return f'#line 1 "{path}"\n{text}', number


def main(tree, out):
    number, table = 0, []
    for path in sorted((tree / "kernels").rglob("*")):
        if path.suffix not in (".cuh", ".hpp"):
            continue
        relative = path.relative_to(tree / "kernels").as_posix()
        if relative.startswith(LEFT_OUT) or relative.endswith(".config.hpp"):
            text = f'#line 1 "{path}"\n{path.read_text()}'
        else:
            text, number = mutate(path, relative, number, table)
        target = out / "kernels" / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
    quoted = lambda name: name.replace("\\", "\\\\").replace('"', '\\"')
    rows = "".join(f'{{{place}, Change::to_{change}, "{quoted(name)}"}},\n' for place, change, name in table)
    (out / "places.inc").write_text(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
