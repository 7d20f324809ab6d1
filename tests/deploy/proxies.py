"""The four proxies: how each is started with a configuration of deploy/, or with a minimal one."""

import os
import shutil
import subprocess
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
MODULES = "/usr/lib/apache2/modules"

# The public name in the configurations, and in the certificate.
NAME = "live.example.com"

# What the configurations name, and the tests replace by addresses and files of their own.
BACKEND = "127.0.0.1:8080"
CERTIFICATE = f"/etc/ssl/certs/{NAME}.pem"
KEY = f"/etc/ssl/private/{NAME}.key"

# The shortest timeout of the proxies, in seconds: 75 in the configurations.
TIMEOUT = 2


def make_certificate(directory):
    """Makes a self-signed certificate: its file, that of its key, and one with both."""
    certificate, key, both = (directory / name for name in ("cert.pem", "key.pem", "both.pem"))
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, stderr=subprocess.DEVNULL)
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    return certificate, key, both


def replaced(text, replacements):
    """The text with every replacement made. One that does not occur is an error: the test would run something else."""
    for old, new in replacements:
        if old not in text:
            raise ValueError(f"{old!r} does not occur in the configuration")
        text = text.replace(old, str(new))
    return text


class Site:
    """Where one proxy runs: its address, its program's address, its directory, and the certificate."""

    def __init__(self, directory, port, backend, certificate):
        self.directory = directory
        self.port = port
        self.backend = backend
        self.certificate, self.key, self.both = certificate

    def write(self, name, text):
        path = self.directory / name
        path.write_text(text)
        return path


class Nginx:
    name = "nginx"
    program = "nginx"
    # The status while the program does not run.
    unavailable = 502
    # The status for a host name without a site: the proxy forwards the request, and the program refuses it.
    unknown_host = 403
    # What the timeout of the configuration ends when it is silent.
    cuts_websockets = True
    cuts_event_streams = True
    # RFC 8441.
    offers_websocket_over_http2 = False

    # The least that connects a browser to the program.
    MINIMAL = f"""server {{
    listen 443 ssl http2;
    server_name {NAME};
    ssl_certificate     {CERTIFICATE};
    ssl_certificate_key {KEY};
    location / {{ proxy_pass http://{BACKEND}; }}
}}
"""

    @classmethod
    def command(cls, site, text=None, connections=512):
        if text is None:
            text = replaced((DEPLOY / "nginx.conf").read_text(), [("75s", f"{TIMEOUT}s")])
        text = replaced(
            text,
            [
                ("listen 443 ", f"listen 127.0.0.1:{site.port} "),
                (BACKEND, site.backend),
                (CERTIFICATE, site.certificate),
                (KEY, site.key),
            ],
        )
        included = site.write("site.conf", text)
        directory = site.directory
        temporary = "client_body_temp_path proxy_temp_path fastcgi_temp_path uwsgi_temp_path scgi_temp_path"
        paths = "".join(f"{path} {directory}/{path};\n" for path in temporary.split())
        user = "user root;\n" if os.getuid() == 0 else ""
        main = site.write(
            "nginx.conf",
            f"{user}daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/log;\n"
            f"events {{ worker_connections {connections}; }}\nhttp {{ access_log off;\n{paths}include {included};\n}}\n",
        )
        return ["nginx", "-p", directory, "-e", f"{directory}/log", "-c", main]


class HAProxy:
    name = "HAProxy"
    program = "haproxy"
    # The status while the program does not run.
    unavailable = 503
    # The status for a host name without a site: the proxy forwards the request, and the program refuses it.
    unknown_host = 403
    # What the timeout of the configuration ends when it is silent.
    cuts_websockets = True
    cuts_event_streams = True
    # RFC 8441.
    offers_websocket_over_http2 = True

    MINIMAL = f"""defaults
    mode http
    timeout connect 5s
    timeout client 75s
    timeout server 75s
frontend live
    bind :443 ssl crt /etc/haproxy/certs/{NAME}.pem alpn h2,http/1.1
    default_backend humphrey_broadcast
backend humphrey_broadcast
    server broadcast {BACKEND}
"""

    @classmethod
    def command(cls, site, text=None):
        if text is None:
            # HAProxy does not start without descriptors for all connections.
            text = replaced((DEPLOY / "haproxy.cfg").read_text(), [("maxconn 20000", "maxconn 200")])
        text = replaced(
            text,
            [
                ("75s", f"{TIMEOUT}s"),
                ("bind :443 ", f"bind 127.0.0.1:{site.port} "),
                (BACKEND, site.backend),
                (f"/etc/haproxy/certs/{NAME}.pem", site.both),
            ],
        )
        return ["haproxy", "-db", "-f", site.write("haproxy.cfg", text)]


class Caddy:
    name = "Caddy"
    program = "caddy"
    # The status while the program does not run.
    unavailable = 502
    # The status for a host name without a site: Caddy replies itself, with an empty body.
    unknown_host = 200
    # What the timeout of the configuration ends when it is silent.
    cuts_websockets = False
    cuts_event_streams = False
    # RFC 8441.
    offers_websocket_over_http2 = False

    MINIMAL = f"""{NAME} {{
	reverse_proxy {BACKEND}
}}
"""

    @classmethod
    def command(cls, site, text=None):
        return ["caddy", "run", "--adapter", "caddyfile", "--config", cls.write(site, text)]

    @classmethod
    def reload_command(cls, site, text):
        address = f"unix/{site.directory}/admin"
        return ["caddy", "reload", "--adapter", "caddyfile", "--address", address, "--config", cls.write(site, text)]

    @classmethod
    def write(cls, site, text):
        if text is None:
            text = (DEPLOY / "Caddyfile").read_text()
        address = f"{NAME}:{site.port} {{\n\tbind 127.0.0.1\n\ttls {site.certificate} {site.key}\n"
        text = replaced(text, [(f"{NAME} {{\n", address), (BACKEND, site.backend)])
        options = f"{{\n\tadmin unix/{site.directory}/admin\n\tauto_https disable_redirects\n}}\n"
        return site.write("Caddyfile", options + text)


class Apache:
    name = "Apache"
    program = "apache2"
    # The status while the program does not run.
    unavailable = 503
    # The status for a host name without a site: the proxy forwards the request, and the program refuses it.
    unknown_host = 403
    # What the timeout of the configuration ends when it is silent.
    cuts_websockets = False
    cuts_event_streams = True
    # RFC 8441.
    offers_websocket_over_http2 = False

    MINIMAL = f"""<VirtualHost *:443>
    ServerName {NAME}
    Protocols h2 http/1.1
    SSLEngine on
    SSLCertificateFile    {CERTIFICATE}
    SSLCertificateKeyFile {KEY}
    ProxyPass / http://{BACKEND}/ upgrade=websocket
</VirtualHost>
"""

    @classmethod
    def command(cls, site, text=None):
        if text is None:
            text = replaced((DEPLOY / "apache.conf").read_text(), [("timeout=75", f"timeout={TIMEOUT}")])
        text = replaced(
            text,
            [
                ("*:443", f"127.0.0.1:{site.port}"),
                (BACKEND, site.backend),
                (CERTIFICATE, site.certificate),
                (KEY, site.key),
            ],
        )
        modules = "mpm_event authz_core filter deflate headers http2 proxy proxy_http socache_shmcb ssl"
        load = "".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so\n" for name in modules.split())
        directory = site.directory
        included = site.write("site.conf", text)
        main = site.write(
            "apache.conf",
            f"ServerName {NAME}\nServerRoot {directory}\nPidFile {directory}/pid\nErrorLog {directory}/log\n"
            f"DefaultRuntimeDir {directory}\nListen 127.0.0.1:{site.port}\nUser www-data\nGroup www-data\n"
            f"{load}Include {included}\n",
        )
        return ["apache2", "-DFOREGROUND", "-f", main]


PROXIES = [Nginx, HAProxy, Caddy, Apache]


def missing():
    """The programs that are not installed."""
    return [proxy.program for proxy in PROXIES if shutil.which(proxy.program) is None]
