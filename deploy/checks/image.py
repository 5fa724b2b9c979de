"""Runs the steps of deploy/Dockerfile in order in a clean tree, and starts what comes out as the image would.

Each stage is a folder that begins as a copy of the one it is `FROM`, mounted at /src; each RUN is run verbatim by `sh`, each COPY
copies. `apt-get` lines are left out: the packages are this machine's. The toolchain is this machine's too, and crates come from
its cache. Release builds: a quarter of an hour on two processors. Needs bubblewrap and the Rust toolchain.
"""

import fnmatch
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from processes import ROOT, fail


def instructions(text):
    """Yields (instruction, rest) of a Dockerfile, continued lines joined and comments left out."""
    lines, whole = [], ""
    for line in text.splitlines():
        if line.lstrip().startswith("#") or (not line.strip() and not whole):
            continue
        whole += line.removesuffix("\\")
        if not line.endswith("\\"):
            lines.append(whole)
            whole = ""
    for line in lines:
        name, _, rest = line.partition(" ")
        yield name, rest.strip()


@functools.cache
def ignore_patterns():
    return [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def ignored(path):
    for pattern in ignore_patterns():
        if pattern.startswith("**/"):
            if fnmatch.fnmatch(path.name, pattern[3:]):
                return True
        elif fnmatch.fnmatch(str(path), pattern) and str(path).count("/") == pattern.count("/"):
            return True
    return False


def copy_context(target):
    """Copies what git has, less what .dockerignore names, as `COPY . .` would."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        path = Path(name)
        if any(ignored(part) for part in [path, *path.parents][:-1]) or not (ROOT / path).exists():
            continue
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)


class Stage:
    def __init__(self, folder, name, parent):
        self.src, self.out = folder / name / "src", folder / name / "out"
        self.workdir = parent.workdir if parent else "/src"
        self.entry, self.command, self.user = [], [], None
        for mine, theirs in ((self.src, parent and parent.src), (self.out, parent and parent.out)):
            mine.parent.mkdir(parents=True, exist_ok=True)
            if theirs and theirs.exists():
                subprocess.run(["cp", "-a", theirs, mine], check=True)
            else:
                mine.mkdir()

    def run(self, command):
        cargo = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
        rustup = Path(os.environ.get("RUSTUP_HOME", Path.home() / ".rustup"))
        if command.startswith("apt-get"):
            print(f"not run: {command.splitlines()[0]}", flush=True)
            return
        print(f"RUN {' '.join(command.split())[:110]}", flush=True)
        # /src and /out are no folders of this machine: a root of ours has them.
        sandbox = ["bwrap", "--die-with-parent", "--tmpfs", "/"]
        for folder in ("/usr", "/etc", str(rustup)):
            sandbox += ["--ro-bind", folder, folder]
        sandbox += ["--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64",
                    "--symlink", "usr/sbin", "/sbin", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp",
                    "--bind", str(cargo), str(cargo), "--bind", str(self.src), "/src", "--bind", str(self.out), "/out",
                    "--chdir", self.workdir, "--clearenv", "--setenv", "HOME", str(Path.home()),
                    "--setenv", "CARGO_HOME", str(cargo), "--setenv", "RUSTUP_HOME", str(rustup),
                    "--setenv", "PATH", f"{cargo}/bin:/usr/local/bin:/usr/bin:/bin"]
        if subprocess.run([*sandbox, "--", "sh", "-c", command]).returncode:
            fail(f"deploy/Dockerfile: RUN {command}")


def main():
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    with tempfile.TemporaryDirectory(prefix="merit-image-", dir=os.environ.get("MERIT_IMAGE_DIR")) as name:
        folder, stages, files = Path(name), {}, {}
        stage, named = None, None
        for instruction, rest in instructions(text):
            if instruction == "FROM":
                found = re.match(r"(\S+)(?: AS (\S+))?", rest)
                named = found.group(2)
                stage = stages[named] = Stage(folder, named, stages.get(found.group(1)))
                files[named] = dict(files.get(found.group(1), {}))
            elif instruction == "RUN" and stage is not None:
                stage.run(rest)
            elif instruction == "COPY":
                *options, source, target = rest.split()
                options = dict(option[2:].split("=", 1) for option in options if option.startswith("--"))
                sources = [part for part in rest.split()[:-1] if not part.startswith("--")]
                origin = stages.get(options.get("from"))
                if origin is None:
                    copy_context(stage.src)
                elif target == ".":
                    subprocess.run(["cp", "-a", f"{origin.src}/.", stage.src], check=True)
                else:
                    for part in sources:
                        inner = origin.out / Path(part).relative_to("/out")
                        if not inner.exists():
                            fail(f"deploy/Dockerfile: COPY {rest}: {part} is not there")
                        files[named][target] = inner
            elif instruction in ("ENTRYPOINT", "CMD"):
                setattr(stage, "entry" if instruction == "ENTRYPOINT" else "command", json.loads(rest))
            elif instruction == "USER":
                stage.user = rest
        image = stages["merit"]
        start(folder, files["merit"], image, stages["base"].user)


def start(folder, files, image, user):
    """Starts the last stage as its user, on a read-only root that holds what was copied and Debian's libraries."""
    uid, gid = user.split(":")
    sandbox = ["bwrap", "--die-with-parent", "--unshare-all", "--uid", uid, "--gid", gid, "--tmpfs", "/", "--proc", "/proc", "--dev", "/dev",
               "--ro-bind", "/usr/lib", "/usr/lib", "--ro-bind", "/etc/ssl", "/etc/ssl", "--symlink", "usr/lib", "/lib"]
    if Path("/usr/lib64").exists():
        sandbox += ["--ro-bind", "/usr/lib64", "/usr/lib64", "--symlink", "usr/lib64", "/lib64"]
    for target, source in files.items():
        sandbox += ["--ro-bind" if target != "/var/lib/merit" else "--bind", str(source), target]
    config = ROOT / "deploy" / "merit.kafka.toml"
    sandbox += ["--ro-bind", str(config), "/etc/merit/merit.toml", "--remount-ro", "/", "--chdir", "/var/lib/merit",
                "--clearenv", "--setenv", "MERIT_JWT_SECRET", "0123456789abcdef0123456789abcdef"]
    checks = {
        "--version": [*image.entry, "--version"],
        "check-config": [*image.entry, "check-config", "--config", "/etc/merit/merit.toml"],
    }
    for what, command in checks.items():
        done = subprocess.run([*sandbox, "--", *command], capture_output=True, text=True)
        if done.returncode:
            fail(f"the image's {what}: {done.stderr}")
    merit = files["/usr/local/bin/merit"]
    links = subprocess.run(["ldd", merit], capture_output=True, text=True).stdout
    unknown = [line.split()[0] for line in links.splitlines()
               if not re.match(r"\s*(linux-vdso|libz|libssl|libcrypto|libgcc_s|libm|libc|/lib64/ld-linux|/lib/ld-linux)", line)]
    if unknown:
        fail(f"merit links libraries that the image does not install: {unknown}")
    print(f"merit is {merit.stat().st_size / 1e6:.0f} MB, starts as {uid} on a read-only root")


if __name__ == "__main__":
    sys.exit(main())
