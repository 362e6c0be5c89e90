"""Starts the embedded hub on the ports that the SDKs insist on and runs every case against it; see run."""
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import uuid

import cases
import install
from install import ROOT, WORK, Failed

HERE = os.path.join(ROOT, "interop")
LIMIT = 60  # seconds for one program


class Wrong(Exception):
    """A case that did not come out as it must."""


class Program:
    """A running program; its output is read as it comes."""

    def __init__(self, command, env, folder=None):
        self.lines, self.seen, self.done = [], threading.Condition(), False
        self.process = subprocess.Popen(command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            with self.seen:
                self.lines.append(line.rstrip("\n"))
                self.seen.notify_all()
        with self.seen:
            self.done = True
            self.seen.notify_all()

    def says(self, text):
        """Waits for a line that begins so, or with one of several texts."""
        with self.seen:
            ok = self.seen.wait_for(lambda: self.done or any(line.startswith(text) for line in self.lines), LIMIT)
            if not ok or not any(line.startswith(text) for line in self.lines):
                raise Wrong(f"it did not say {text!r}")

    def ends(self, code=0):
        """Waits for its end with an exit code."""
        try:
            got = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise Wrong(f"it did not end within {LIMIT} s") from None
        with self.seen:
            self.seen.wait_for(lambda: self.done, 5)
        if got != code:
            raise Wrong(f"it ended with {got}, not {code}")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Driver:
    """The hub and the interpreters, and the programs of the case that runs."""

    def __init__(self):
        self.interpreters, self.missing, self.running = {}, {}, []
        self.passed = self.failed = 0

    def install(self, chosen):
        """Installs everything. What cannot be had fails the cases that need it, and they say why."""
        self.downlink = install.binary()
        for name, step in (("python", lambda: install.venv("sdk")), ("node", install.node), ("independent", install.independent), ("mosquitto", install.mosquitto)):
            if name not in chosen:
                continue
            try:
                self.interpreters[name] = step()
            except Failed as e:
                self.missing[name] = str(e)

    def start_hub(self, devices):
        data = os.path.join(WORK, "hub")
        shutil.rmtree(data, ignore_errors=True)
        command = [self.downlink, "hub", "--json", "--data-dir", data, "--http", "127.0.0.1:0", "--log-level", "warn"]
        command += ["--amqps", "127.0.0.1:5671", "--mqtts", "127.0.0.1:8883", "--https", "127.0.0.1:443"]
        self.hub = Program(command + [word for d in devices for word in ("--device", d)], os.environ)
        try:
            self.hub.says('{"event":"ready"')
        except Wrong:
            raise Failed("the hub did not start:\n" + "\n".join(self.hub.lines) + "\n"
                         "The SDKs' ports are fixed, so 5671, 8883 and 443 of 127.0.0.1 must be free and allowed: end what holds them,\n"
                         "and for 443 be root or run: sysctl net.ipv4.ip_unprivileged_port_start=443") from None
        self.ready = json.loads(next(line for line in self.hub.lines if line.startswith("{")))
        read = subprocess.run([self.downlink, "hub", "connection-string", "--data-dir", data, "registryRead"], check=True, capture_output=True, text=True).stdout.strip()
        self.env = dict(
            os.environ, PYTHONPATH=os.path.join(HERE, "python"), PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1",
            NODE_PATH=os.path.join(WORK, "node", "node_modules"), NODE_EXTRA_CA_CERTS=self.ready["ca_file"],
            SSL_CERT_FILE=self.ready["ca_bundle_file"], REQUESTS_CA_BUNDLE=self.ready["ca_bundle_file"], CA_FILE=self.ready["ca_file"],
            SERVICE_CONNECTION_STRING=self.ready["service_connection_string"], OWNER_CONNECTION_STRING=self.ready["iothubowner_connection_string"],
            REGISTRY_READ_CONNECTION_STRING=read,
        )

    def stop_hub(self):
        self.hub.process.terminate()
        self.hub.ends()

    def program(self, command, *words, **env):
        """Starts a program of ours: the interpreter's name, the file, its words."""
        interpreter, file, rest = command[0], command[1], command[2:]
        if interpreter in self.missing:
            raise Wrong(self.missing[interpreter])
        path = {"node": "node", "mosquitto": sys.executable}.get(interpreter) or self.interpreters[interpreter]
        p = Program([path, os.path.join(HERE, file), *rest, *words], self.env | env)
        self.running.append(p)
        return p

    def send(self, sender, device, messages, code=0, **env):
        before, after = cases.SENDERS[sender]
        p = self.program(before, device, *after, MESSAGES=json.dumps(messages), **env)
        p.ends(code)
        return p

    def script(self, text, folder, **env):
        """Runs a shell script in a new folder below .interop."""
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        p = Program(["bash", "-c", text], self.env | env, folder)
        self.running.append(p)
        return p

    def device(self, name):
        """A device's connection string."""
        return self.ready["devices"][name]

    def inspect(self, path):
        """What the hub's inspection says."""
        with urllib.request.urlopen(self.ready["http"] + path, timeout=10) as r:
            return json.load(r)

    def admin(self, method, path, document):
        """Has the hub misbehave."""
        request = urllib.request.Request(self.ready["http"] + path, json.dumps(document).encode(), {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=10) as r:
            r.read()

    def case(self, name, run):
        self.running, start = [], time.monotonic()
        try:
            run()
        except Exception as e:
            self.failed += 1
            print(f"FAIL  {name}", flush=True)
            text = str(e) if isinstance(e, Wrong) else f"{type(e).__name__}: {e}"
            for p in self.running:
                text += "".join(f"\n{os.path.basename(p.process.args[1])}: {line}" for line in p.lines[-15:])
            print("      " + text.replace("\n", "\n      "), flush=True)
        else:
            self.passed += 1
            print(f"ok    {name} ({time.monotonic() - start:.1f} s)", flush=True)
        finally:
            for p in self.running:
                p.kill()


def delivers(d, sender, receiver, device):
    """What one program sends while the other is connected arrives whole and in order."""
    messages = cases.messages(sender)
    r = d.program(cases.RECEIVERS[receiver], MESSAGES=json.dumps(messages), DEVICE_CONNECTION_STRING=d.device(device))
    r.says("connected")
    d.send(sender, device, messages)
    r.ends()


def waits(d, sender, receiver, device):
    """A device that has subscribed before gets what was sent while it was away."""
    delivers(d, sender, receiver, device)
    messages = cases.messages(sender)
    d.send(sender, device, messages)
    d.program(cases.RECEIVERS[receiver], MESSAGES=json.dumps(messages), DEVICE_CONNECTION_STRING=d.device(device)).ends()


def refuses(d, sender, what, want):
    """The hub refuses, and the client says so as it does with the real one."""
    device = {"unknown-device": "nobody", "full-queue": "full"}.get(what, "empty")
    env = {}
    if what == "wrong-key":
        env["SERVICE_CONNECTION_STRING"] = re.sub(r"SharedAccessKey=[^;]*", "SharedAccessKey=" + "A" * 43 + "=", d.env["SERVICE_CONNECTION_STRING"])
    if what == "no-right":
        env["SERVICE_CONNECTION_STRING"] = d.env["REGISTRY_READ_CONNECTION_STRING"]
    if what == "throttled":
        env["RETRY"] = "none"  # Node's SDK would try again for minutes
        d.admin("POST", "/admin/faults", {"point": "transfer", "kind": "throttle", "device": device})
    d.send(sender, device, cases.refused_messages(what), code=3, **env).says(tuple(f"refused {w} " for w in ([want] if isinstance(want, str) else want)))


def refuses_login(d, receiver, what, want):
    """A device with a wrong key, or one that is not registered, does not get in."""
    text = d.device("empty")
    if what == "wrong-key":
        text = re.sub(r"SharedAccessKey=[^;]*", "SharedAccessKey=" + "A" * 43 + "=", text)
    else:
        text = text.replace("DeviceId=empty", "DeviceId=nobody")
    command = [word if word != "handler" else "connect" for word in cases.RECEIVERS[receiver]]
    p = d.program(command, MESSAGES="[]", DEVICE_CONNECTION_STRING=text)
    p.ends(3)
    if not any(line.startswith("refused ") and want in line for line in p.lines):
        raise Wrong(f"it did not say that it was refused with {want}")


def feeds_back(d, name, device):
    """A sender learns that the device has completed its message."""
    message_id = "fb-" + uuid.uuid4().hex[:8]
    messages = cases.feedback_messages(message_id)
    before, after = cases.FEEDBACK[name]
    f = d.program(before, device, message_id, *after)
    if after or before[1] != "python/feedback.py":
        f.says("connected")
    r = d.program(cases.RECEIVERS["mosquitto-mqtt" if name.startswith("python") else "python-mqtt"], MESSAGES=json.dumps(messages), DEVICE_CONNECTION_STRING=d.device(device))
    r.says("connected")
    d.send("node-amqp" if name.startswith("node") else "python-amqp", device, messages)
    r.ends()
    f.ends()


def reports(d, name, device):
    """Telemetry is readable through the hub's inspection; twin and methods are answered."""
    message_id = "t-" + uuid.uuid4().hex[:8]
    d.program(cases.DEVICES[name], DEVICE_CONNECTION_STRING=d.device(device), TELEMETRY_ID=message_id).ends()
    seen = d.inspect(f"/inspect/telemetry?device={device}&wait=10s")["messages"]
    if len(seen) != 1:
        raise Wrong(f"the hub has {len(seen)} telemetry messages of the device: {seen}")
    got, system = seen[0], seen[0]["systemProperties"]
    want = {"message-id": message_id, "correlation-id": "c-1", "content-type": "application/json", "content-encoding": "utf-8"}
    if any(system.get(k) != v for k, v in want.items()) or got["properties"] != {"alert": "a=b&c d/e"}:
        raise Wrong(f"the hub's telemetry differs: {got}")
    if json.loads(got["body"]) != {"temperature": 21.5, "place": "Köln"}:
        raise Wrong(f"the telemetry's body differs: {got}")


def calls(d, service, serving, device):
    """A service changes a twin and calls a method, and the device gets both."""
    s = d.program(serving, DEVICE_CONNECTION_STRING=d.device(device))
    s.says("connected")
    d.program(service, device).ends()
    s.ends()


DOCS = {"python": ("python", "test_pump.py", "-m unittest"), "node": ("js", "pump.test.js", "--test")}


def documented(d, name):
    """The programs of docs/testing-with-the-hub.md do what it says, started as it says."""
    with open(os.path.join(ROOT, "docs", "testing-with-the-hub.md"), encoding="utf-8") as f:
        blocks = re.findall(r"^```(\w+)\n(.*?)^```", f.read(), re.MULTILINE | re.DOTALL)
    language, file, options = DOCS[name]
    start = next(text for kind, text in blocks if kind == "sh")
    code = next(text for kind, text in blocks if kind == language)
    interpreter = d.interpreters.get("python") if name == "python" else "node"
    if not interpreter:
        raise Wrong(d.missing["python"])
    folder = os.path.join(WORK, "docs-" + name)
    bin = os.path.dirname(d.downlink)
    run = f"cat >{file} <<'END'\n{code}\nEND\ntimeout 50 {interpreter} {options} {file}\ncode=$?\nkill %1\nwait %1\nexit $code"
    d.script(start + run, folder, PATH=bin + ":" + os.environ["PATH"]).ends()


def table(names):
    """docs/sdks.md names every case and no other."""
    with open(os.path.join(ROOT, "docs", "sdks.md"), encoding="utf-8") as f:
        rows = [line for line in f if line.startswith("|")]
    named = {word for row in rows for word in re.findall(r"`([a-z0-9-]+\.[a-z0-9.-]+)`", row)}
    if named - names or names - named:
        raise Wrong(f"no such case: {sorted(named - names)}; not in the table: {sorted(names - named)}")


def everything(d):
    """All cases, by name."""
    all_cases = {}
    for s, r in cases.PAIRS:
        all_cases[f"c2d.{s}.{r}"] = lambda name, s=s, r=r: delivers(d, s, r, name)
    for s, r in cases.OFFLINE:
        all_cases[f"offline.{s}.{r}"] = lambda name, s=s, r=r: waits(d, s, r, name)
    for what, senders in cases.REFUSALS.items():
        for s, want in senders.items():
            all_cases[f"refused.{s}.{what}"] = lambda name, s=s, what=what, want=want: refuses(d, s, what, want)
    for r, want in cases.LOGIN_REFUSALS.items():
        for what in ("wrong-key", "unknown-device"):
            all_cases[f"login.{r}.{what}"] = lambda name, r=r, what=what, want=want: refuses_login(d, r, what, want)
    for k in cases.FEEDBACK:
        all_cases[f"feedback.{k}"] = lambda name, k=k: feeds_back(d, k, name)
    for k in cases.DEVICES:
        all_cases[f"device.{k}"] = lambda name, k=k: reports(d, k, name)
    for (s, r), (service, serving) in cases.CALLS.items():
        all_cases[f"call.{s}.{r}"] = lambda name, service=service, serving=serving: calls(d, service, serving, name)
    for k, file in (("python", "python/registry.py"), ("node", "node/registry.js")):
        all_cases[f"registry.{k}"] = lambda name, k=k, file=file: d.program([k, file]).ends()
    return all_cases


def main(prefixes):
    d = Driver()
    all_cases = everything(d)
    afterwards = {f"docs.{k}": lambda name, k=k: documented(d, k) for k in DOCS}  # they start a hub of their own
    names = set(all_cases) | set(afterwards)
    chosen = {n: run for n, run in all_cases.items() if not prefixes or n.startswith(tuple(prefixes))}
    last = {n: run for n, run in afterwards.items() if not prefixes or n.startswith(tuple(prefixes))}
    if not chosen and not last:
        sys.exit(f"interop: no case begins with {' or '.join(prefixes)}")
    try:
        d.install({"python", "node", "independent", "mosquitto"})
        d.start_hub(sorted(all_cases) + ["empty", "full"])
    except Failed as e:
        sys.exit(f"interop: {e}")
    try:
        if any(n.endswith(".full-queue") for n in chosen):
            d.case("fill.python-amqp", lambda: d.send("python-amqp", "full", cases.filling()))
        for name, run in chosen.items():
            d.case(name, lambda name=name, run=run: run(name))
        if not prefixes:
            d.case("docs/sdks.md names these cases", lambda: table(names))
        d.case("the hub ends well", d.stop_hub)
        for name, run in last.items():
            d.case(name, lambda name=name, run=run: run(name))
    finally:
        d.hub.kill()
    print(f"{d.passed} passed, {d.failed} failed")
    return 1 if d.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
