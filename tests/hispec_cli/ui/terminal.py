"""The real program in a pseudo-terminal, seen through a terminal emulator."""

import os
import re
import sys
import time

import pexpect
import pyte


class Screen(pyte.HistoryScreen):
    """Knows dim text too, which the emulator does not: it takes the place of blinking; and which rows go on below."""

    def __init__(self, *arguments, **options):
        self.wrapped = set()
        super().__init__(*arguments, **options)

    def draw(self, data):
        for character in data:
            row = len(self.history.top) + self.cursor.y
            full = self.cursor.x == self.columns
            super().draw(character)
            if full and len(self.history.top) + self.cursor.y == row + 1:
                self.wrapped.add(row)

    def erase_in_line(self, how=0, private=False):
        self._cut(0)
        super().erase_in_line(how, private)

    def erase_in_display(self, how=0, *arguments, **options):
        self._cut(how)
        super().erase_in_display(how, *arguments, **options)

    def _cut(self, how):
        """A row that is erased from its first cell on does not belong to the one before."""
        if how or self.cursor.x == 0:
            self.wrapped.discard(len(self.history.top) + self.cursor.y - 1)

    def select_graphic_rendition(self, *attributes):
        known, rest = [], list(attributes)
        while rest:
            if rest[0] in (38, 48):  # a colour: its numbers are no attributes
                count = 5 if rest[1] == 2 else 3
                known, rest = known + rest[:count], rest[count:]
            else:
                known.append(5 if rest[0] == 2 else rest[0])
                del rest[0]
        super().select_graphic_rendition(*known)


class Terminal:
    """Runs `hispec` as a person at a terminal would see it.

    Args:
        arguments: the arguments of the program, or of a shell when `shell` is given.
        shell: run this through `sh -c` instead; `hispec` stands for the program.
    """

    DEADLINE = 30
    """Seconds after which something promised is taken for missing."""

    def __init__(self, *arguments, columns=80, rows=24, shell=None, **environment):
        program = [sys.executable, "-m", "hispec_cli"]
        command = (
            ["sh", "-c", re.sub(r"\bhispec\b", " ".join(program), shell)] if shell else [*program, *map(str, arguments)]
        )
        kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.screen = Screen(columns, rows, history=1000, ratio=0.1)
        self._stream = pyte.ByteStream(self.screen)
        self.screen.write_process_input = lambda answer: self.child.send(answer)  # to what a program asks a terminal
        self.sent = b""
        self.child = pexpect.spawn(
            command[0],
            command[1:],
            dimensions=(rows, columns),
            env={**kept, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor", **environment},
        )

    def until(self, seen):
        """Read on until `seen(self)` holds between two frames."""
        deadline = time.monotonic() + self.DEADLINE
        while not seen(self):
            assert time.monotonic() < deadline, self.text
            if not self._read():
                assert seen(self), self.text
                break

    def settle(self):
        """Read on until a second has brought nothing new."""
        quiet = 0
        while quiet < 10:
            before = len(self.sent)
            self._read()
            quiet = quiet + 1 if len(self.sent) == before else 0

    def end(self):
        """Read to the end; returns the exit code."""
        self.until(lambda _: not self._read())
        self.child.close()
        return self.child.exitstatus

    def resize(self, columns, rows=24):
        """Change the window's size; the emulator cuts rows, as xterm does."""
        self.screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)

    def press(self, key):
        """Type a key."""
        self.child.send(key)

    @property
    def lines(self):
        """The scrollback and the screen, without blanks at the ends."""
        above = ["".join(row[column].data for column in range(self.screen.columns)) for row in self.screen.history.top]
        lines = [line.rstrip() for line in (*above, *self.screen.display)]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def text(self):
        return "\n".join(self.lines)

    def runs(self, row):
        """The styled pieces of a row of the screen: (text, looks), plain ones left out."""
        found = []
        for column in range(self.screen.columns):
            cell = self.screen.buffer[row][column]
            looks = tuple(
                name for name in ("italics", "underscore", "bold", "strikethrough") if getattr(cell, name)
            ) + ((cell.fg,) if cell.fg != "default" else ())
            if found and found[-1][1] == looks:
                found[-1] = (found[-1][0] + cell.data, looks)
            else:
                found.append((cell.data, looks))
        return [(text, looks) for text, looks in found if looks]

    def _read(self):
        try:
            data = self.child.read_nonblocking(65536, timeout=0.1)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.sent += data
        self._stream.feed(data)
        return True
