"""Checks of the .deb in a Debian system under systemd: from the installation over an upgrade to the purge. Each goes on where the one
before it has ended."""

import re

import clients
from packages import NAME

SERVICE = f"{NAME}.service"
SOCKET = f"{NAME}.socket"
DEFAULTS = f"/etc/default/{NAME}"
SECRETS = f"/etc/{NAME}"
READY = 200, "ready\n"
STOPPING = 503, "not ready: the server is stopping\n"

TOKEN = "token-of-the-package-tests"


def check(counts, system, old, new, program):
    before = system.files()
    steps = [
        (installation_starts_the_service, system, old),
        (units_are_valid, system),
        (service_has_no_rights, system),
        (service_echoes_to_a_websocket_client, system),
        (service_publishes_with_the_token_in_its_directory, system, program),
        (upgrade_restarts_under_a_client_and_refuses_nobody, system, new, program),
        (upgrade_keeps_the_changed_configuration, system),
        (killed_service_is_restarted, system),
        (hanging_service_is_restarted_by_the_watchdog, system),
        (stopped_service_closes_with_1001_and_is_started_by_the_next_client, system),
        (removal_stops_the_service_and_keeps_the_configuration, system),
        (installation_after_a_removal_starts_the_service_as_it_was_configured, system, new),
        (purge_leaves_nothing, system, before),
    ]
    for step, *arguments in steps:
        # Its restarts don't count as those of a service that fails at each start.
        system.run("systemctl", "reset-failed", SERVICE, check=False)
        if not counts.check(step, *arguments):
            # The later ones would fail as well.
            print(system.journal(NAME))
            break


def install(system, package):
    system.path("/srv").mkdir(exist_ok=True)
    target = system.path("/srv") / package.deb.name
    target.write_bytes(package.deb.read_bytes())
    try:
        return system.run("dpkg", "--install", f"/srv/{target.name}")
    finally:
        target.unlink()


def is_active(system, unit):
    return system.run("systemctl", "is-active", unit, check=False).strip() == "active"


def installation_starts_the_service(system, package):
    install(system, package)
    for unit in SERVICE, SOCKET:
        assert system.run("systemctl", "is-enabled", unit).strip() == "enabled", unit
        assert is_active(system, unit), system.run("systemctl", "status", unit, check=False)
    assert clients.request("GET", "/ready") == READY
    status, page = clients.request("GET", "/")
    assert status == 200 and "</html>" in page


def units_are_valid(system):
    # There are no programs to show manual pages.
    assert system.run("systemd-analyze", "verify", "--man=no", SERVICE, SOCKET) == ""


def service_has_no_rights(system):
    status = system.run("cat", f"/proc/{system.show(SERVICE, 'MainPID')}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert "0" not in fields["Uid"].split(), fields["Uid"]
    for capabilities in "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
        assert int(fields[capabilities], 16) == 0, capabilities
    assert fields["NoNewPrivs"] == "1"
    # A filter of system calls.
    assert fields["Seccomp"] == "2"


def service_echoes_to_a_websocket_client(system):
    client = clients.WebSocket()
    client.send("hello")
    assert "hello" in client.texts()
    client.close()


def service_publishes_with_the_token_in_its_directory(system, program):
    """As /etc/default/humphrey-broadcast says."""
    token = system.path(SECRETS) / "publish-token"
    assert token.parent.stat().st_mode & 0o777 == 0o700
    token.touch(0o600)
    token.write_text(TOKEN)
    defaults = system.path(DEFAULTS)
    changed = re.sub("^#(HUMPHREY_BROADCAST_PUBLISH_TOKEN_FILE=)", r"\1", defaults.read_text(), flags=re.MULTILINE)
    assert changed != defaults.read_text()
    defaults.write_text(changed)
    system.run("systemctl", "restart", SERVICE)
    with clients.Listener(program) as listener:
        status, answer = clients.request("POST", "/publish", "published", TOKEN)
        assert status == 200, answer
        listener.until("published")
    assert clients.request("POST", "/publish", "refused", "another token")[0] == 401


def upgrade_restarts_under_a_client_and_refuses_nobody(system, package, program):
    before = system.show(SERVICE, "MainPID")
    with clients.Listener(program) as listener:
        clients.request("POST", "/publish", "before the upgrade", TOKEN)
        listener.until("before the upgrade")
        with clients.probing() as outcomes:
            install(system, package)
        clients.request("POST", "/publish", "after the upgrade", TOKEN)
        listener.until("after the upgrade")
    assert system.show(SERVICE, "MainPID") != before
    assert system.run("dpkg-query", "--show", "--showformat=${Version}", NAME) == package.field("Version")
    # Requests that come while there is no process wait at the socket. One after the other was made, so one at most can have reached
    # the old process in the moment in which it stopped: it gets 503, or its connection is closed before it is read.
    print(f"        requests during the upgrade: {outcomes}")
    cut = {STOPPING, "RemoteDisconnected", "ConnectionResetError"}
    assert set(outcomes) - cut == {READY}, outcomes
    assert sum(outcomes.values()) - outcomes[READY] <= 1, outcomes


def upgrade_keeps_the_changed_configuration(system):
    assert clients.request("POST", "/publish", "after the upgrade", TOKEN)[0] == 200
    assert "\nHUMPHREY_BROADCAST_PUBLISH_TOKEN_FILE=" in system.path(DEFAULTS).read_text()


def restarted(system, before):
    """Waits until the service runs as another process: a request waits until then, since the socket stays open."""
    assert clients.request("GET", "/ready") == READY
    assert system.show(SERVICE, "MainPID") not in (before, "0")


def killed_service_is_restarted(system):
    before = system.show(SERVICE, "MainPID")
    client = clients.WebSocket()
    system.run("systemctl", "kill", "--signal=SIGKILL", SERVICE)
    # Until it has ended, a request might reach it.
    client.until_end()
    restarted(system, before)


def hanging_service_is_restarted_by_the_watchdog(system):
    directory = f"/run/systemd/system/{SERVICE}.d"
    settings = "[Service]\\nWatchdogSec=1\\nTimeoutAbortSec=1\\n"
    system.run("sh", "-c", f"mkdir -p {directory} && printf '{settings}' >{directory}/watchdog.conf && systemctl daemon-reload")
    system.run("systemctl", "restart", SERVICE)
    before = system.show(SERVICE, "MainPID")
    client = clients.WebSocket()
    system.run("systemctl", "kill", "--signal=SIGSTOP", SERVICE)
    client.until_end()
    restarted(system, before)
    assert "Watchdog timeout" in system.journal(NAME)
    system.run("sh", "-c", f"rm -r {directory} && systemctl daemon-reload")
    system.run("systemctl", "restart", SERVICE)


def stopped_service_closes_with_1001_and_is_started_by_the_next_client(system):
    client = clients.WebSocket()
    system.run("systemctl", "stop", SERVICE)
    assert client.close_code() == 1001
    assert not is_active(system, SERVICE)
    assert clients.request("GET", "/ready") == READY
    assert is_active(system, SERVICE)


def removal_stops_the_service_and_keeps_the_configuration(system):
    process = system.show(SERVICE, "MainPID")
    system.run("dpkg", "--remove", NAME)
    assert clients.is_refused()
    assert process not in system.run("ls", "/proc").split()
    assert not system.path(f"/usr/bin/{NAME}").exists()
    assert system.path(DEFAULTS).exists() and (system.path(SECRETS) / "publish-token").exists()


def installation_after_a_removal_starts_the_service_as_it_was_configured(system, package):
    install(system, package)
    assert clients.request("POST", "/publish", "after the removal", TOKEN)[0] == 200


def purge_leaves_nothing(system, before):
    system.run("dpkg", "--purge", NAME)
    after = system.files()
    assert after == before, after ^ before
    assert system.run("dpkg-query", "--show", "--showformat=${Status}", NAME, check=False).find("installed") < 0
    remembered = [path for path in system.path("/var/lib").rglob("*") if NAME in path.name]
    assert not remembered, remembered
