"""Installs what the cases run below .interop: the hub, the SDKs and the independent clients at pinned versions."""
import filecmp
import os
import shutil
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORK = os.path.join(ROOT, ".interop")


class Failed(Exception):
    """An install step that failed; the text says which and how."""


def _run(what, *command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL, **options)
    if done.returncode != 0:
        raise Failed(f"{what} failed: {' '.join(command)}\n{done.stdout[-3000:]}")


def binary():
    """Builds the hub, unless DOWNLINK names one that is built."""
    os.makedirs(WORK, exist_ok=True)
    if os.environ.get("DOWNLINK"):
        return os.path.abspath(os.environ["DOWNLINK"])
    path = os.path.join(WORK, "downlink")
    _run("the build", "go", "build", "-o", path, "./cmd/downlink", cwd=ROOT)
    return path


def venv(name):
    """Makes the Python environment of one requirements file and returns its interpreter."""
    wanted = os.path.join(ROOT, "interop", "requirements", name + ".txt")
    home = os.path.join(WORK, "python-" + name)
    have = os.path.join(home, "requirements.txt")
    python = os.path.join(home, "bin", "python")
    if not (os.path.exists(have) and filecmp.cmp(wanted, have, shallow=False)):
        _run("python3 -m venv (Debian: apt-get install python3-venv)", "python3", "-m", "venv", "--clear", home)
        _run("pip", python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", wanted)
        shutil.copy(wanted, have)
    return python


def independent():
    """The environment of the clients that know nothing of IoT Hub. Proton has no wheel for Linux: its C part is compiled here."""
    try:
        return venv("independent")
    except Failed:
        apt("gcc", "python3-dev", "libssl-dev", "pkg-config")
        return venv("independent")


def node():
    """Installs the npm packages and returns their folder."""
    wanted = os.path.join(ROOT, "interop", "node", "package.json")
    home = os.path.join(WORK, "node")
    modules, have = os.path.join(home, "node_modules"), os.path.join(home, "package.json")
    if not (os.path.exists(modules) and filecmp.cmp(wanted, have, shallow=False)):
        shutil.rmtree(home, ignore_errors=True)
        os.makedirs(home)
        shutil.copy(wanted, have)
        try:
            _run("npm", "npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error", cwd=home)
        except Failed:
            shutil.rmtree(home, ignore_errors=True)
            raise
    return modules


def mosquitto():
    """Sees to it that mosquitto_sub and mosquitto_pub are there."""
    if not shutil.which("mosquitto_sub"):
        apt("mosquitto-clients")


def apt(*packages):
    """Installs Debian packages, where this machine has apt and we may."""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise Failed(f"install these first: {' '.join(packages)} (Debian: apt-get install {' '.join(packages)})")
    quiet = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    _run("apt-get update", "apt-get", "update", "-qq", env=quiet)
    _run("apt-get install", "apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages, env=quiet)
