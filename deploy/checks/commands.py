"""Every command of the documents, run as a reader would run it.

What stands in the `sh`, `bash` and `console` blocks of each `*.md` that git tracks is run in order, by one shell for each
document. It stands in a clean copy of what git tracks, which is mounted where the tree is, in a network with nothing in it
but loopback: the ports are those that the documents name, and no two readers meet. Exit statuses must be 0. What a `console`
block shows below a command must be in what the command prints; `…` in it stands for anything.

Comments directly before a block, which no reader sees, say what the text around it leaves to the reader:

    <!-- with: SHELL -->                what was there before: files, variables, servers (`start PORT COMMAND`), `recorded` ratings
    <!-- serves: TEXT=PORT, … -->       the command with TEXT runs until it is interrupted, and is waited for at PORT
    <!-- shows: TEXT -->                what the block must print
    <!-- not run: REASON -->            the block is left out
    <!-- not run, TEXT: REASON -->      its commands with TEXT are left out

A server ends by SIGINT with its document, or when another one wants its port. `export NAME=…` takes the value that `with`
gave NAME. Finished programs are found in MERIT_BINS, and cargo builds what it is told to in target/, or in CARGO_TARGET_DIR.

    commands.py [DOCUMENT …]
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from processes import ROOT, binary, fail

DOCUMENT_SECONDS = 3600     # cargo may have much to build
TAIL = 3000                 # characters shown of what a failed command printed
PROGRAMS = "merit|cargo|redis-cli|curl|kill|helm|kubectl|docker|promtool|deploy/check|integration/test|integration/load"

# `step KIND FILE [PORT]` runs one file of a document; the first that fails ends the shell. `set -m` gives each server a
# process group of its own, which hears of an interruption as it would at a terminal.
SHELL = r"""
set -m -o pipefail
declare -A servers
started=()
start() { # start PORT COMMAND …: returns when it answers
  local port=$1; shift
  end "$port"
  eval "$*" >"$log" 2>&1 </dev/null &
  servers[$port]="$! $*" started=("$port" "${started[@]}")
  until (: </dev/tcp/127.0.0.1/"$port") 2>/dev/null && [ "$(curl -s -m 5 -o /dev/null -w '%{http_code}' "http://127.0.0.1:$port/readyz")" != 503 ]; do
    kill -0 "${servers[$port]%% *}" 2>/dev/null || { echo "it ended before it answered on port $port" >>"$log"; return 1; }
    sleep 0.1
  done
}
recorded() { # ratings under the names that `merit replay` knows by itself and those of MovieLens, and decisions
  awk 'BEGIN { print "userId,movieId,rating,timestamp,user_id,agent_id"
    for (n = 0; n < 400; n++) printf "%d,%d,%d,%d,u%d,a%d\n", n % 37, n % 20, 1 + n * 7 % 5, 1700000000 + n, n % 37, n % 20 }' >ratings.csv
  awk -F, 'NR > 1 { print $1 "\t" $2 "\t" $3 "\t" $4 }' ratings.csv >u.data
  awk 'BEGIN { for (n = 0; n < 900; n++) { arm = (n * 7 + int(n / 40)) % 3
    printf "{\"at_ms\":%.0f,\"agent\":\"a%d\",\"policy\":\"bandit\",\"version\":\"v1\",\"features\":[%d],\"base\":12.5,", 18e11 + n, n % 40, n % 2
    printf "\"action\":{\"change\":%s,\"arm\":%d,\"arms\":3},\"propensity\":0.33333333,\"reward\":%s}\n", arm / 4 - 0.25, arm, n % 5 / 4 } }' >decisions.ndjson
}
end() { # end PORT: whoever was started there
  [ -n "${servers[$1]:-}" ] || return 0
  local pid=${servers[$1]%% *} command=${servers[$1]#* } status=0
  unset "servers[$1]"
  kill -INT -- "-$pid" || { wait "$pid"; echo "ended by itself: $?: $command"; return 1; }
  (sleep 30; kill -KILL -- "-$pid") 2>/dev/null & local guard=$!
  wait "$pid" || status=$?
  kill -KILL -- "-$guard"; wait "$guard" 2>/dev/null
  # 130 is how a program ends that leaves SIGINT to the kernel. Merit does not: it drains.
  [ "$status" = 0 ] || [[ $status = 130 && $command != *merit\ *run\ * ]] || { echo "interrupted: $status: $command"; return 1; }
}
step() {
  local kind=$1 text status=0
  log=$here/$2.out text=$(cat "$here/$2.sh")
  if [ "$kind" = serve ]; then start "$3" "$text" || status=$?
  else eval "$text" >"$log" 2>&1 </dev/null || status=$?; fi
  echo "$status" >"$here/$2.status"
  [ "$status" = 0 ] || exit 1
}
"""


class Command:
    """A command, or what stands in a `with`."""

    def __init__(self, kind, text, line, port=None):
        self.kind, self.text, self.line, self.port = kind, text, line, port
        self.block = [self]     # what is shown may be printed by any of these
        self.shown = []         # patterns that what it prints must have
        self.reason = None      # why it is not run

    def names(self, text):
        return text in re.sub(r"\s#.*", "", self.text)

    def first_line(self):
        return " ".join(self.text.replace("\\\n", " ").split("\n")[0].split())


def complete(text):
    """Returns whether a shell would run this, and not wait for another line."""
    return not text.endswith("\\") and subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).returncode == 0


def pattern(text):
    return ".*?".join(r"\s+".join(map(re.escape, part.split())) for part in text.split("…"))


def commands_of(block, language, first, where):
    """Splits a block into its commands, with the output that a `console` block shows."""
    found, text, start = [], "", first
    for number, line in enumerate(block.splitlines(), first):
        if language == "console":
            if not text and not line.startswith("$ "):
                if line and found:
                    found[-1].shown.append(line)
                continue
            line = line.removeprefix("$ ").removeprefix("> ")
        if not text:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            start = number
        text += ("\n" if text else "") + line
        if complete(text):
            found.append(Command("run", text, start))
            text = ""
    if text:
        fail(f"{where}:{start}: no whole command: {text}")
    return found


def marks_before(lines, index, where):
    """Returns the comments directly before line `index`, in their order, as (kind, argument, value)."""
    text = "\n".join(lines[:index])
    marks = []
    while found := re.search(r"<!--\s*((?:(?!-->).)*?)\s*-->\s*\Z", text, re.S):
        mark = re.fullmatch(r"(with|serves|shows|not run)(?:, ([^:]+))?:\s+(.+)", found[1], re.S)
        if not mark:
            fail(f"{where}:{index}: no mark that is known: {found[1]}")
        marks.insert(0, mark.groups())
        text = text[:found.start()]
    return marks


def read(path):
    """Returns what is to be run of a document, and how many comments were marks of blocks."""
    where, lines = str(path.relative_to(ROOT)), path.read_text().splitlines()
    plan, index, used = [], 0, 0
    while index < len(lines):
        fence = re.match(r" *(`{3,})(\S*)", lines[index])
        if not fence:
            index += 1
            continue
        end = next(n for n in range(index + 1, len(lines)) if lines[n].strip() == fence[1])
        block, language = "\n".join(lines[index + 1:end]), fence[2]
        if language in ("sh", "bash", "shell", "console"):
            commands = commands_of(block, language, index + 2, where)
            marks = marks_before(lines, index, where)
            used += len(marks)
            setups = []
            for kind, argument, value in marks:
                if kind == "with":
                    setups.append(Command("with", value, index + 1))
                elif kind == "shows":
                    commands[-1].shown.append(value)
                    commands[-1].block = commands
                elif kind == "not run":
                    left_out = [command for command in commands if argument is None or command.names(argument)]
                    if not left_out:
                        fail(f"{where}:{index}: no command has {argument!r}")
                    for command in left_out:
                        command.reason = value
                else:
                    for text, port in (pair.rsplit("=", 1) for pair in value.split(", ")):
                        served = [command for command in commands if command.names(text)]
                        if len(served) != 1:
                            fail(f"{where}:{index}: {len(served)} commands have {text!r}")
                        served[0].kind, served[0].port = "serve", port
            plan += [*(setups if any(command.reason is None for command in commands) else []), *commands]
        elif language == "" or re.search(r"^\$ ", block, re.M):
            fail(f"{where}:{index + 1}: a block without a language, or with `$ ` in one that is not `console`")
        index = end + 1
    for command in plan:
        if command.kind == "run" and re.search(r"&\s*(#.*)?\Z", command.text) and not command.reason:
            fail(f"{where}:{command.line}: runs in the background, and no mark says at which port")
    return plan, used


def for_shell(command):
    """Returns the text that is run: values that the reader has are taken from `with`, and a server's `&` is ours."""
    text = re.sub(r"\b([A-Z][A-Z_]*)=…", r'\1="${\1:?no `with` gives it}"', command.text)
    return re.sub(r"&\s*(#.*)?\Z", "", text) if command.kind == "serve" else text


def copy(folder):
    """Copies what git tracks, with its times, so that cargo finds fresh what is."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    (folder / "target").mkdir()


def follow(where, plan):
    """Runs a document's commands, and fails with the first that is not as the document says."""
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as here:
        copy(Path(scratch))
        script, todo = [SHELL, f"here={here}"], [command for command in plan if not command.reason]
        for number, command in enumerate(todo):
            (Path(here) / f"{number}.sh").write_text(for_shell(command))
            script.append(f"step {command.kind} {number} {command.port or ''}")
        script.append('for port in "${started[@]}"; do end "$port" >>"$here/end" || exit 1; done')
        target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
        target.mkdir(exist_ok=True)
        bins = Path(binary("merit")).absolute().parent
        env = {**os.environ, "PATH": f"{bins}:{os.environ['PATH']}", "CARGO_NET_OFFLINE": "true", "NO_COLOR": "1"}
        env.pop("CARGO_TARGET_DIR", None)
        apart = ["bwrap", "--dev-bind", "/", "/", "--proc", "/proc", "--unshare-net", "--unshare-pid", "--die-with-parent",
                 "--bind", scratch, str(ROOT), "--bind", str(target.resolve()), str(ROOT / "target"), "--chdir", str(ROOT)]
        try:
            done = subprocess.run([*apart, "bash", "-c", "\n".join(script)], env=env, stdin=subprocess.DEVNULL,
                                  capture_output=True, text=True, timeout=DOCUMENT_SECONDS)
            errors, status = done.stderr, done.returncode
        except subprocess.TimeoutExpired:
            errors, status = f"not done within {DOCUMENT_SECONDS} s", 1
        printed_by = {}
        for number, command in enumerate(todo):
            out, code = Path(here) / f"{number}.out", Path(here) / f"{number}.status"
            printed = out.read_text(errors="replace") if out.exists() else ""
            printed_by[command] = printed
            problem = None
            if not code.exists():
                problem = "never ended" if out.exists() else "never run"
            elif (number_of := code.read_text().strip()) != "0":
                problem = f"ended with {number_of}"
            else:
                whole = "\n".join(printed_by.get(other, "") for other in command.block)
                missing = [text for text in command.shown if not re.search(pattern(text), whole, re.S | re.I)]
                if missing:
                    problem = f"does not show {missing[0]!r}"
            if problem:
                fail(f"{where}:{command.line}: {problem}: {command.text}\n{printed[-TAIL:]}\n{errors[-TAIL:]}")
        if status:
            ended = Path(here) / "end"
            fail(f"{where}: {ended.read_text() if ended.exists() else ''}{errors[-TAIL:]}")


def main(only):
    names = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    if wrong := set(only) - set(names):
        fail(f"no document that git tracks: {', '.join(sorted(wrong))}")
    run, left_out, inline = 0, 0, 0
    for where in only or names:
        text = (ROOT / where).read_text()
        inline += len(re.findall(rf"`(?:\./)?(?:{PROGRAMS})\b[^`\n]*`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)))
        plan, used = read(ROOT / where)
        if used != len(re.findall(r"<!--\s*(?:with|serves|shows|not run)[,:]", text)):
            fail(f"{where}: a mark that is not directly before a block of commands")
        commands = [command for command in plan if command.kind != "with"]
        todo = [command for command in commands if not command.reason]
        for command in commands:
            if command.reason:
                print(f"{where}:{command.line}: not run: {command.first_line()}: {command.reason}")
        if todo:
            began = time.monotonic()
            follow(where, plan)
            print(f"{where}: {len(todo)} commands run, {time.monotonic() - began:.0f} s", flush=True)
        run, left_out = run + len(todo), left_out + len(commands) - len(todo)
    print(f"{inline} commands in the midst of text are not run: `deploy/check documents` knows those of merit")
    print(f"{run} commands run, {left_out} not run")


if __name__ == "__main__":
    main(sys.argv[1:])
