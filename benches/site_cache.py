"""`make bench-pull`, second part: many machines that boot at once, with and without the cache of `deploy/cache`.

The hub speaks TLS, wants a token and redirects to addresses with a signature that differs each time. The storage is an
nginx with TLS, whose log gives requests and bytes. BENCH_MACHINES (20) pulls start at once, each with a folder of its own in
BENCH_DIR (/var/tmp); they need BENCH_FILES (5) files of BENCH_FILE_MB (200). The table goes to benches/results/site-cache.md.
"""

import collections
import hashlib
import http.server
import json
import os
import pathlib
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "target/release/model-catalog"
MACHINES = int(os.environ.get("BENCH_MACHINES", "20"))
FILES = int(os.environ.get("BENCH_FILES", "5"))
BYTES = int(os.environ.get("BENCH_FILE_MB", "200")) * 1_000_000
HUB_PORT, STORAGE_PORT, CATALOG_PORT, CACHE_PORT = 18743, 18744, 18745, 18800
TOKEN = "hf_" + secrets.token_hex(16)


class Hub(http.server.BaseHTTPRequestHandler):
    """Redirects requests with the token to signed addresses."""

    protocol_version = "HTTP/1.1"
    requests = 0

    def do_GET(self):
        Hub.requests += 1
        allowed = self.headers.get("authorization") == f"Bearer {TOKEN}"
        self.send_response(302 if allowed else 401)
        if allowed:
            signature = secrets.token_hex(32)
            self.send_header("location", f"https://127.0.0.1:{STORAGE_PORT}{self.path}?signature={signature}")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def start_hub(work):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", HUB_PORT), Hub)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(work / "certificate.pem", work / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def start_nginx(command, folder):
    process = subprocess.Popen(command, stderr=(folder / "stderr.log").open("w"), start_new_session=True)
    time.sleep(0.5)
    if process.poll() is not None:
        sys.exit((folder / "stderr.log").read_text())
    return process


def stop(process):
    os.killpg(process.pid, signal.SIGTERM)
    process.wait()


def storage(work, models):
    """nginx with the files by TLS, and the catalog's response."""
    entries = [{"id": name, "download_url": f"https://127.0.0.1:{HUB_PORT}/{name}", "hash": digest, "auth_required": True,
                "save_path": name} for name, digest in models.items()]
    answer = json.dumps({"models": entries, "not_found": [], "missing_dependencies": []})
    (work / "nginx.conf").write_text(f"""
        daemon off; worker_processes 2; pid {work}/nginx.pid; error_log stderr;
        events {{ worker_connections 4096; }}
        http {{ log_format bytes '$body_bytes_sent $uri $http_range'; access_log {work}/access.log bytes; sendfile on;
        tcp_nopush on; client_body_temp_path {work}/t; proxy_temp_path {work}/t; fastcgi_temp_path {work}/t;
        uwsgi_temp_path {work}/t; scgi_temp_path {work}/t; ssl_session_cache shared:s:1m;
        server {{ listen 127.0.0.1:{STORAGE_PORT} ssl; ssl_certificate {work}/certificate.pem;
            ssl_certificate_key {work}/key.pem; root {work}/source; }}
        server {{ listen 127.0.0.1:{CATALOG_PORT}; access_log off; location = /api/models/batch {{
            default_type application/json; return 200 '{answer}'; }} }} }}""")
    return start_nginx(["nginx", "-c", work / "nginx.conf", "-e", "stderr"], work)


def cache(work):
    """The cache of deploy/cache, with other paths, ports and hosts."""
    folder = work / "site"
    for name in ["run", "cache", "log"]:
        (folder / name).mkdir(parents=True)
    config = (ROOT / "deploy/cache/nginx.conf").read_text()
    start, rest = config.split('"~^', 1)
    config = start + f'"~^https://127\\.0\\.0\\.1:{STORAGE_PORT}' + rest[rest.index('/[!-~]*$"'):]
    script = (ROOT / "deploy/cache/start.sh").read_text()
    for shipped, value in [("/run/model-cache", folder / "run"), ("/var/cache/model-cache", folder / "cache"),
                           ("/var/log/model-cache", folder / "log"), (" min_free=20g", ""), ("8800", CACHE_PORT),
                           ("/etc/ssl/certs/ca-certificates.crt", work / "certificate.pem"),
                           ("/etc/nginx/model-cache.conf", folder / "nginx.conf")]:
        config, script = config.replace(shipped, str(value)), script.replace(shipped, str(value))
    (folder / "nginx.conf").write_text(config)
    return start_nginx(["sh", "-c", script], folder)


def pulls(work, target, models, count, cached):
    """Seconds until the last pull has ended, CPU seconds of the pulls, and what hub and storage were asked."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    os.sync()
    log = work / "access.log"
    skip, Hub.requests = log.stat().st_size, 0
    environment = {"PATH": os.environ["PATH"], "MACHINE_MODELS_NEEDED": ",".join(models), "HF_TOKEN": TOKEN,
                   "HF_ENDPOINT": f"https://127.0.0.1:{HUB_PORT}", "CATALOG_URL": f"http://127.0.0.1:{CATALOG_PORT}",
                   "CURL_CA_BUNDLE": str(work / "certificate.pem")}
    if cached:
        environment["MACHINE_MODELS_CACHE"] = f"http://127.0.0.1:{CACHE_PORT}"
    begun, processes = time.monotonic(), []
    for number in range(count):
        environment["MODELS_DIR"] = str(target / str(number))
        processes.append(subprocess.Popen([PROGRAM, "pull"], env=environment, stderr=subprocess.PIPE))
    used, logs = 0, []
    readers = [threading.Thread(target=lambda pipe=process.stderr: logs.append(pipe.read())) for process in processes]
    for reader in readers:
        reader.start()
    for process in processes:
        _, status, usage = os.wait4(process.pid, 0)
        used += usage.ru_utime + usage.ru_stime
        if status != 0:
            sys.exit("a pull failed")
    seconds = time.monotonic() - begun
    for reader in readers:
        reader.join()
    if cached and any(log.count(b'source="cache"') != len(models) for log in logs):
        sys.exit(f"the cache was not used for every file: {logs[0].decode()}")
    for number in range(count):
        for name in models:
            if (target / str(number) / name).stat().st_size != BYTES:
                sys.exit(f"{name} of machine {number} is not whole")
    shutil.rmtree(target)
    time.sleep(0.5)
    with log.open() as lines:
        lines.seek(skip)
        rows = [line.split() for line in lines]
    sent = sum(int(row[0]) for row in rows)
    pieces = collections.Counter(tuple(row[1:]) for row in rows if int(row[0]) > 1)
    return seconds, used, sent / (BYTES * len(models)), len(rows), max(pieces.values(), default=0), Hub.requests


def leaks(work):
    """Files of the cache with the token or a signature."""
    folder = work / "site"
    found = subprocess.run(["grep", "-rlaE", f"{TOKEN}|signature=", folder], capture_output=True, text=True).stdout
    return found.split()


def main():
    work = pathlib.Path(tempfile.mkdtemp(prefix="bench-site-", dir=os.environ.get("BENCH_DIR", "/var/tmp")))
    os.chmod(work, 0o755)
    target, running = work / "machines", []
    try:
        (work / "source").mkdir()
        subprocess.run(
            ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-newkey", "ec", "-pkeyopt",
             "ec_paramgen_curve:prime256v1", "-keyout", work / "key.pem", "-out", work / "certificate.pem", "-addext",
             "subjectAltName=IP:127.0.0.1,DNS:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"],
            check=True, capture_output=True)
        models = {}
        for number in range(FILES):
            content = os.urandom(BYTES)
            (work / f"source/{number}").write_bytes(content)
            models[str(number)] = hashlib.sha256(content).hexdigest()
        start_hub(work)
        running = [storage(work, models), cache(work)]
        lines = [f"{FILES} files of {BYTES / 1e6:.0f} MB in {work.parent}, {os.cpu_count()} cores for everything, {time.strftime('%F')}.", "",
                 "| machines | cache | seconds of the last | CPU s of the pulls | bytes of the origin / files | its requests "
                 "| most for one piece | requests to the hub |", "|---:|---|---:|---:|---:|---:|---:|---:|"]
        for count, state in [(1, "none"), (1, "empty"), (1, "full"), (MACHINES, "none"), (MACHINES, "empty"),
                             (MACHINES, "full")]:
            if state == "empty":
                stop(running.pop())
                shutil.rmtree(work / "site")
                running.append(cache(work))
            row = pulls(work, target, models, count, state != "none")
            seconds, used, copies, requests, most, hub = row
            lines.append(f"| {count} | {state} | {seconds:.1f} | {used:.1f} | {copies:.2f} | {requests} | {most} | {hub} |")
            print(lines[-1], flush=True)
        found = leaks(work)
        lines += ["", f"Files of the cache with the token or a signature: {len(found)}."]
        print(lines[-1], *found)
        (ROOT / "benches/results/site-cache.md").write_text("\n".join(lines) + "\n")
    finally:
        for process in running:
            stop(process)
        shutil.rmtree(work)


main()
