"""Records a command in a terminal of its own and writes it as an animated SVG, for the README.

    record_demo.py OUT.svg [--columns 80] [--lines 34] -- COMMAND...     e.g. -- make demo

Frames are taken where the screen changed, at most twenty a second, and shown for 0.2 s to 1 s each. Programs that
do not play animations show the frame with the most text.
"""

import argparse
import datetime
import fcntl
import html
import os
import pty
import re
import select
import struct
import sys
import termios
import time

ESCAPE = re.compile(r"\x1b\[([?>=]?)([\d;]*)([A-Za-z@`])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()][A-Z0-9]|\x1b[78=>cM]")
COLOURS = ["#3b4252", "#bf616a", "#a3be8c", "#ebcb8b", "#81a1c1", "#b48ead", "#88c0d0", "#e5e9f0",
           "#6b7489", "#d57780", "#b5d19c", "#f0d8a0", "#93b3d3", "#c6a0bf", "#9ad2e0", "#eceff4"]
FOREGROUND, BACKGROUND = "#d8dee9", "#20242c"
FRAME_SECONDS, SHORTEST_HOLD, LONGEST_HOLD, LAST_HOLD = 0.05, 0.2, 1.0, 6.0
MAX_FRAMES = 60
CELL_WIDTH = 8.4  # of 14 px monospace


class Screen:
    """As much of a terminal as progress lines and live views use."""

    def __init__(self, columns, lines):
        self.columns, self.lines = columns, lines
        self.rows = [[] for _ in range(lines)]  # cells: (character, style)
        self.x = self.y = 0
        self.style = ("", False, False)  # colour, bold, dim
        self.pending = ""

    def line_feed(self):
        if self.y == self.lines - 1:
            self.rows = self.rows[1:] + [[]]
        else:
            self.y += 1

    def put(self, character):
        if self.x >= self.columns:
            self.x = 0
            self.line_feed()
        row = self.rows[self.y]
        row.extend([(" ", ("", False, False))] * (self.x + 1 - len(row)))
        row[self.x] = (character, self.style)
        self.x += 1

    def select_style(self, numbers):
        colour, bold, dim = self.style
        for number in numbers:
            if number == 0:
                colour, bold, dim = "", False, False
            elif number == 1:
                bold = True
            elif number == 2:
                dim = True
            elif number == 22:
                bold = dim = False
            elif 30 <= number <= 37:
                colour = COLOURS[number - 30]
            elif 90 <= number <= 97:
                colour = COLOURS[number - 82]
            elif number == 39:
                colour = ""
        self.style = (colour, bold, dim)

    def control(self, numbers, final):
        n = numbers[0] if numbers and numbers[0] else 1
        if final == "A":
            self.y = max(0, self.y - n)
        elif final in "BE":
            self.y = min(self.lines - 1, self.y + n)
            self.x = 0 if final == "E" else self.x
        elif final == "F":
            self.y, self.x = max(0, self.y - n), 0
        elif final == "C":
            self.x = min(self.columns - 1, self.x + n)
        elif final == "D":
            self.x = max(0, self.x - n)
        elif final == "G":
            self.x = n - 1
        elif final in "Hf":
            self.y = min(self.lines, n) - 1
            self.x = (numbers[1] if len(numbers) > 1 and numbers[1] else 1) - 1
        elif final == "K":
            mode = numbers[0] if numbers else 0
            self.rows[self.y] = [] if mode == 2 else self.rows[self.y][:self.x] if mode == 0 else self.rows[self.y]
        elif final == "J":
            mode = numbers[0] if numbers else 0
            if mode >= 2:
                self.rows = [[] for _ in range(self.lines)]
            elif mode == 0:
                self.rows[self.y] = self.rows[self.y][:self.x]
                for y in range(self.y + 1, self.lines):
                    self.rows[y] = []
        elif final == "m":
            self.select_style(numbers or [0])

    def feed(self, text):
        text, self.pending = self.pending + text, ""
        i = 0
        while i < len(text):
            if text[i] == "\x1b":
                match = ESCAPE.match(text, i)
                if not match and len(text) - i < 32:
                    self.pending = text[i:]  # the rest comes with the next read
                    return
                if match and match.group(3) and not match.group(1):
                    self.control([int(n or 0) for n in match.group(2).split(";")] if match.group(2) else [], match.group(3))
                i = match.end() if match else i + 1
                continue
            if text[i] == "\n":
                self.line_feed()
            elif text[i] == "\r":
                self.x = 0
            elif text[i] == "\b":
                self.x = max(0, self.x - 1)
            elif text[i] >= " ":
                self.put(text[i])
            i += 1

    def snapshot(self):
        rows = [list(row) for row in self.rows]
        for row in rows:
            while row and row[-1][0] == " ":
                row.pop()
        return rows


def record(command, columns, lines):
    """[(seconds, rows)] and the exit status."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS=str(columns), LINES=str(lines))
        os.environ.pop("NO_COLOR", None)
        os.environ.pop("CI", None)
        os.execvp(command[0], command)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    screen, frames, start, last = Screen(columns, lines), [], time.monotonic(), -1.0
    buffer = b""
    while True:
        ready, _, _ = select.select([fd], [], [], FRAME_SECONDS)
        if ready:
            try:
                data = os.read(fd, 65536)
            except OSError:
                break
            if not data:
                break
            buffer += data
            if complete(buffer):
                screen.feed(buffer.decode(errors="replace"))
                buffer = b""
        now = time.monotonic() - start
        if now - last >= FRAME_SECONDS and (not frames or screen.snapshot() != frames[-1][1]):
            frames.append((now, screen.snapshot()))
            last = now
    frames.append((time.monotonic() - start, screen.snapshot()))
    return frames, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def complete(data):
    try:
        data.decode()
        return True
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"


def thin_out(frames):
    step = max(1, -(-len(frames) // MAX_FRAMES))
    return frames[:-1:step] + frames[-1:]


def render_row(row, y):
    parts, i = [], 0
    while i < len(row) and row[i][0] == " ":
        i += 1
    x = i * CELL_WIDTH
    while i < len(row):
        style, j = row[i][1], i
        while j < len(row) and row[j][1] == style:
            j += 1
        colour, bold, dim = style
        attributes = (f' fill="{colour}"' if colour else "") + (' font-weight="bold"' if bold else "") + (
            ' opacity=".6"' if dim else "")
        text = html.escape("".join(cell[0] for cell in row[i:j])).replace(" ", "\u00a0")  # renderers differ in keeping spaces
        parts.append(f"<tspan{attributes}>{text}</tspan>" if attributes else text)
        i = j
    return f'<text x="{x:g}" y="{y}">{"".join(parts)}</text>' if parts else ""


def render(frames, columns, lines, title):
    width, height, line = columns * CELL_WIDTH + 32, lines * 18 + 56, 18
    times, at = [], 0.0
    for i, (seconds, _) in enumerate(frames):
        times.append(at)
        at += LAST_HOLD if i == len(frames) - 1 else min(LONGEST_HOLD, max(SHORTEST_HOLD, frames[i + 1][0] - seconds))
    fullest = max(range(len(frames)), key=lambda i: (sum(len(row) for row in frames[i][1]), i))
    style, groups = [], []
    for i, (_, rows) in enumerate(frames):
        begin = 100 * times[i] / at
        end = 100 * (times[i + 1] if i + 1 < len(frames) else at) / at
        steps = ([f"0%{{visibility:hidden}}{begin:.3f}%{{visibility:visible}}"] if begin else ["0%{visibility:visible}"])
        if end < 100:
            steps.append(f"{end:.3f}%{{visibility:hidden}}100%{{visibility:hidden}}")
        else:
            steps.append("100%{visibility:visible}")
        style.append(f"@keyframes f{i}{{{''.join(steps)}}}#f{i}{{animation:f{i} {at:.2f}s step-end infinite}}")
        shown = "" if i == fullest else ' visibility="hidden"'
        body = "".join(render_row(row, 48 + n * line) for n, row in enumerate(rows))
        groups.append(f'<g id="f{i}"{shown}>{body}</g>')
    dots = "".join(f'<circle cx="{18 + 16 * i}" cy="16" r="5" fill="{COLOURS[c]}"/>' for i, c in enumerate((1, 3, 2)))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(title)}">
<title>{html.escape(title)}</title>
<style>text{{white-space:pre;font:14px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}}
@media (prefers-reduced-motion:no-preference){{{"".join(style)}}}</style>
<rect width="{width:g}" height="{height:g}" rx="8" fill="{BACKGROUND}"/>{dots}
<g fill="{FOREGROUND}" transform="translate(16 0)">
{chr(10).join(groups)}
</g></svg>
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--lines", type=int, default=34)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    frames, status = record(options.command, options.columns, options.lines)
    if status != 0:
        sys.exit(f"{' '.join(options.command)} ended with {status}")
    title = f"{' '.join(options.command)}, recorded {datetime.date.today()}, {frames[-1][0]:.0f} s"
    with open(options.out, "w", encoding="utf-8") as file:
        file.write(render(thin_out(frames), options.columns, options.lines, title))
    print(f"{options.out}: {len(thin_out(frames))} frames")


if __name__ == "__main__":
    main()
