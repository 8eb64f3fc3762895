"""`make bench-pull`: `model-catalog pull` beside aria2c, curl and Python's requests, from a local nginx.

All verify SHA-256, in turns, several rounds, and the medians are written to benches/results/pull.md. Memory needed on
tmpfs: twice four files of BENCH_PULL_MIB. CPU seconds are those of the client's processes, from wait4. The least that a
client can do is measured as well: one connection per file, whose bytes are received, written and hashed by OpenSSL.
"""

import asyncio
import hashlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/model-catalog"
MIB = int(os.environ.get("BENCH_PULL_MIB", "2048"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
FILES = 4
PORT, TLS_PORT = 18480, 18443
CATALOG_PORT, SLOW_PORT = 18482, 18483
SMALL_BYTES, SMALL_FILES, SLOW_FILES = 100_000, 2000, 400
LATENCY = 0.080
MINIMUM = "receive, write, hash"
RECEIVE = """
import concurrent.futures, hashlib, http.client, ssl, sys, urllib.parse
def get(argument):
    url, path, digest = argument.split()
    server = urllib.parse.urlsplit(url)
    if server.scheme == "https":
        connection = http.client.HTTPSConnection(server.netloc, context=ssl.create_default_context(cafile=sys.argv[1]))
    else:
        connection = http.client.HTTPConnection(server.netloc)
    connection.request("GET", server.path)
    response, buffer, computed = connection.getresponse(), memoryview(bytearray(1 << 18)), hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        while count := response.readinto(buffer):
            file.write(buffer[:count])
            computed.update(buffer[:count])
    assert computed.hexdigest() == digest
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(get, sys.argv[2:]))
"""
REQUESTS = """
import concurrent.futures, hashlib, sys, requests
def get(argument):
    url, path, digest = argument.split()
    computed = hashlib.sha256()
    with requests.get(url, stream=True) as response, open(path, "wb") as file:
        for chunk in response.iter_content(1 << 20):
            file.write(chunk)
            computed.update(chunk)
    assert computed.hexdigest() == digest
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(get, sys.argv[1:]))
"""


def run(command, **options):
    """Wall seconds and CPU seconds of a command and its children."""
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    output = []
    reader = threading.Thread(target=lambda: output.append(process.stdout.read()))
    reader.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - begun
    reader.join()
    if status != 0:
        sys.exit(f"{command[0]} failed: {output[0].decode(errors='replace')[-2000:]}")
    return wall, usage.ru_utime + usage.ru_stime


def nginx(work, models):
    """nginx with the files, and the catalog's response as a static text, on HTTP and HTTPS."""
    subprocess.run(
        ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:prime256v1", "-keyout", work / "key.pem", "-out", work / "certificate.pem", "-addext",
         "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"],
        check=True, capture_output=True)
    servers = ""
    for scheme, listen in [("http", PORT), ("https", f"{TLS_PORT} ssl")]:
        port = str(listen).split()[0]
        entries = [{"id": name, "download_url": f"{scheme}://127.0.0.1:{port}/{name}", "hash": digest,
                    "auth_required": False, "save_path": name} for name, digest in models.items()]
        answer = json.dumps({"models": entries, "not_found": [], "missing_dependencies": []})
        servers += f"""server {{ listen 127.0.0.1:{listen}; root {work}/source;
            location = /api/models/batch {{ default_type application/json; return 200 '{answer}'; }} }}\n"""
    (work / "nginx.conf").write_text(f"""
        daemon off; worker_processes 2; pid {work}/nginx.pid; error_log {work}/error.log;
        events {{ worker_connections 1024; }}
        http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {work}/t; proxy_temp_path {work}/t;
        fastcgi_temp_path {work}/t; uwsgi_temp_path {work}/t; scgi_temp_path {work}/t;
        ssl_certificate {work}/certificate.pem; ssl_certificate_key {work}/key.pem; ssl_session_cache shared:s:1m;
        {servers} }}""")
    process = subprocess.Popen(["nginx", "-c", work / "nginx.conf", "-p", work], stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    if process.poll() is not None:
        sys.exit((work / "error.log").read_text())
    return process


def clients(work, target, models, tls):
    """The commands that are compared."""
    base = f"https://127.0.0.1:{TLS_PORT}" if tls else f"http://127.0.0.1:{PORT}"
    certificate = str(work / "certificate.pem")
    environment = {"PATH": os.environ["PATH"], "CURL_CA_BUNDLE": certificate, "REQUESTS_CA_BUNDLE": certificate}
    pull = {"MACHINE_MODELS_NEEDED": ",".join(models), "CATALOG_URL": base, "MODELS_DIR": str(target)}
    sheet = "".join(f"{base}/{name}\n  out={name}\n  checksum=sha-256={digest}\n" for name, digest in models.items())
    (work / "aria2").write_text(sheet)
    (work / "sums").write_text("".join(f"{digest}  {target}/{name}\n" for name, digest in models.items()))
    sources = " ".join(f"-o {target}/{name} {base}/{name}" for name in models)
    arguments = [f"{base}/{name} {target}/{name} {digest}" for name, digest in models.items()]
    return {
        "model-catalog pull": ([PROGRAM, "pull"], environment | pull),
        "aria2c -j4 -x4 -s4": (["aria2c", "--no-conf", "-q", "-j4", "-x4", "-s4", "--file-allocation=none", f"-d{target}",
                                f"-i{work}/aria2", f"--ca-certificate={certificate}"], environment),
        "curl -Z, sha256sum": (["sh", "-ec", f"curl -sfZ --parallel-max 4 --cacert {certificate} {sources}\n"
                                f"sha256sum --quiet -c {work}/sums"], environment),
        "requests, hashlib": ([sys.executable, "-c", REQUESTS, *arguments], environment),
        MINIMUM: ([sys.executable, "-c", RECEIVE, certificate, *arguments], environment),
    }


def measure(target, files, size, commands):
    """Median wall and CPU seconds of each command, in turns; each has to create these files of this size."""
    results = {}
    for _ in range(ROUNDS):
        for name, (command, environment) in commands.items():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            os.sync()
            results.setdefault(name, []).append(run(command, env=environment))
            for file in files:
                if (target / file).stat().st_size != size:
                    sys.exit(f"{name}: {file} is not whole")
    shutil.rmtree(target)
    return {name: [statistics.median(column) for column in zip(*rows)] for name, rows in results.items()}


class Servers(threading.Thread):
    """The catalog of the small files, and a server that answers after a round trip and accepts after another."""

    def __init__(self, source, models):
        super().__init__(daemon=True)
        self.source, self.models = source, models
        self.loop = asyncio.new_event_loop()
        self.start()

    def run(self):
        for handler, port in [(self.catalog, CATALOG_PORT), (self.slow, SLOW_PORT)]:
            self.loop.run_until_complete(asyncio.start_server(handler, "127.0.0.1", port, backlog=1024))
        self.loop.run_forever()

    async def request(self, reader):
        """Path, headers in lower case, and body."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        return head[0].split()[1], headers, await reader.readexactly(int(headers.get("content-length", 0)))

    async def catalog(self, reader, writer):
        """The path before /api names the server of the files: its port."""
        path, _, body = await self.request(reader)
        port = path.split("/")[1]
        entries = [{"id": name, "download_url": f"http://127.0.0.1:{port}/{name}", "hash": self.models[name],
                    "auth_required": False, "save_path": name, "file_size_gb": SMALL_BYTES / 1e9}
                   for name in json.loads(body)["model_ids"]]
        answer = json.dumps({"models": entries, "not_found": [], "missing_dependencies": []}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        writer.close()

    async def slow(self, reader, writer):
        await asyncio.sleep(LATENCY)
        try:
            while True:
                path, headers, _ = await self.request(reader)
                await asyncio.sleep(LATENCY)
                file = (self.source / path[1:]).read_bytes()
                status, extra = "200 OK", ""
                if "range" in headers:
                    first, last = headers["range"].removeprefix("bytes=").split("-")
                    part = file[int(first):int(last or SMALL_BYTES) + 1]
                    extra = f"content-range: bytes {first}-{int(first) + len(part) - 1}/{len(file)}\r\n"
                    status, file = "206 Partial Content", part
                writer.write(f"HTTP/1.1 {status}\r\n{extra}content-length: {len(file)}\r\n\r\n".encode() + file)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def small_clients(work, target, models, port):
    """`pull` and aria2c with as many requests at a time."""
    sheet = "".join(f"http://127.0.0.1:{port}/{name}\n  out={name}\n  checksum=sha-256={digest}\n"
                    for name, digest in models.items())
    (work / "aria2-small").write_text(sheet)
    environment = {"PATH": os.environ["PATH"]}
    commands = {}
    for parallel, connections in [(4, 4), (4, 1)]:
        lanes = parallel * connections
        pull = {"MACHINE_MODELS_NEEDED": ",".join(models), "CATALOG_URL": f"http://127.0.0.1:{CATALOG_PORT}/{port}",
                "MODELS_DIR": str(target), "MACHINE_MODELS_CONNECTIONS": str(connections)}
        commands[f"model-catalog pull, {lanes} connections"] = ([PROGRAM, "pull"], environment | pull)
        commands[f"aria2c -j{lanes}"] = (["aria2c", "--no-conf", "-q", f"-j{lanes}", "--file-allocation=none",
                                          f"-d{target}", f"-i{work}/aria2-small"], environment)
    return commands


def small(work, target):
    """Rows of the table of small files."""
    source = work / "source"
    models = {}
    for number in range(SMALL_FILES):
        content = os.urandom(SMALL_BYTES)
        (source / f"s{number}").write_bytes(content)
        models[f"s{number}"] = hashlib.sha256(content).hexdigest()
    Servers(source, models)
    time.sleep(0.5)
    for place, count, port in [("local", SMALL_FILES, PORT), (f"{LATENCY * 1000:.0f} ms", SLOW_FILES, SLOW_PORT)]:
        files = dict(list(models.items())[:count])
        results = measure(target, files, SMALL_BYTES, small_clients(work, target, files, port))
        for lanes in [16, 4]:
            wall, cpu = results[f"aria2c -j{lanes}"]
            seconds, used = results[f"model-catalog pull, {lanes} connections"]
            yield (f"| {count}, {place} | {lanes} | {seconds:.2f} | {wall:.2f} | {seconds / wall:.2f} | {used:.2f} "
                   f"| {used / cpu:.2f} |")


def warm(work):
    """A boot with 20 sparse files of 10 GB that the record knows: seconds, and bytes read."""
    target = work / "warm"
    (target / ".model-catalog").mkdir(parents=True)
    files, entries = {}, []
    for number in range(20):
        name, digest = f"m{number}", hashlib.sha256(str(number).encode()).hexdigest()
        with open(target / name, "wb") as file:
            file.truncate(10_000_000_000)
        stat = os.stat(target / name)
        stamp = {"size": stat.st_size, "inode": stat.st_ino, "mtime": stat.st_mtime_ns, "ctime": stat.st_ctime_ns}
        files[name] = {"model": name, "hash": f"sha256:{digest}", "stamp": stamp, "fetched": True, "needed_at": 0}
        entries.append({"id": name, "download_url": "http://127.0.0.1:1/", "hash": digest, "auth_required": False,
                        "save_path": name})
    (target / ".model-catalog/record.json").write_text(json.dumps({"version": 1, "files": files}))
    answer = json.dumps({"models": entries, "not_found": [], "missing_dependencies": []})
    conf = (work / "nginx.conf").read_text()
    port = PORT + 1
    server = f"server {{ listen 127.0.0.1:{port}; location / {{ default_type application/json; return 200 '{answer}'; }} }}"
    (work / "nginx.conf").write_text(conf[: conf.rindex("}")] + server + "}")
    subprocess.run(["nginx", "-s", "reload", "-c", work / "nginx.conf", "-p", work], check=True, capture_output=True)
    time.sleep(0.5)
    environment = {"PATH": os.environ["PATH"], "MACHINE_MODELS_NEEDED": ",".join(files), "MACHINE_MODELS_STRICT": "1",
                   "CATALOG_URL": f"http://127.0.0.1:{port}", "MODELS_DIR": str(target)}
    begun = time.monotonic()
    io = subprocess.run([PROGRAM, "pull", "--", "sh", "-c", "cat /proc/$$/io"], env=environment, check=True,
                        capture_output=True, text=True).stdout
    return time.monotonic() - begun, int(io.split("rchar: ")[1].split()[0])


def main():
    work = pathlib.Path(tempfile.mkdtemp(prefix="bench-pull-", dir="/dev/shm"))
    disk = ROOT / "target/bench-pull"
    os.chmod(work, 0o755)
    server = None
    try:
        (work / "source").mkdir()
        models = {}
        for number in range(FILES):
            digest = hashlib.sha256()
            with open(work / f"source/{number}", "wb") as file:
                for _ in range(MIB):
                    block = os.urandom(1 << 20)
                    digest.update(block)
                    file.write(block)
            models[str(number)] = digest.hexdigest()
        server = nginx(work, models)
        lines = [f"{FILES} files of {MIB} MiB, {os.cpu_count()} cores, median of {ROUNDS} rounds, {time.strftime('%F')}.", "",
                 "| target | TLS | client | seconds | of aria2c's | CPU s per GiB | of aria2c's | of the least |",
                 "|---|---|---|---:|---:|---:|---:|---:|"]
        gib = FILES * MIB / 1024
        for place, target in [("tmpfs", work / "target"), ("disk", disk)]:
            for tls in [False, True]:
                results = measure(target, models, MIB << 20, clients(work, target, models, tls))
                (wall, cpu), (_, least) = results["aria2c -j4 -x4 -s4"], results[MINIMUM]
                for name, (seconds, used) in results.items():
                    row = (f"| {place} | {'on' if tls else 'off'} | {name} | {seconds:.2f} | {seconds / wall:.2f} "
                           f"| {used / gib:.2f} | {used / cpu:.2f} | {used / least:.2f} |")
                    print(row, flush=True)
                    lines.append(row)
        lines += ["", f"Files of {SMALL_BYTES // 1000} KB on disk, by number and latency of the server; medians.", "",
                  "| files | at a time | seconds | aria2c's | ratio | CPU s | of aria2c's |",
                  "|---|---:|---:|---:|---:|---:|---:|"]
        for row in small(work, disk):
            print(row, flush=True)
            lines.append(row)
        seconds, read = warm(work)
        lines += ["", f"Warm boot, 20 files of 10 GB (sparse): {seconds * 1000:.0f} ms, {read} bytes read."]
        print(lines[-1])
        (ROOT / "benches/results/pull.md").write_text("\n".join(lines) + "\n")
    finally:
        if server:
            server.terminate()
            server.wait()
        shutil.rmtree(work)
        shutil.rmtree(disk, ignore_errors=True)


main()
