"""The examples `notifications` and `chat`, with the blocking client of Python's `websockets` and `http.client`."""

import json
import os
from http.client import HTTPConnection
from urllib.parse import urlencode, urlsplit

from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from checks import DEADLINE, Checks

NOTIFICATIONS = os.environ["NOTIFICATIONS_URL"], os.environ["NOTIFICATIONS_LINKED_URL"]
CHAT = os.environ["CHAT_URL"]


def open_at(url, path, **query):
    return connect(f"{url}{path}?{urlencode(query)}", proxy=None, legacy=True)


def receive(ws, kind=None):
    """The next message, or the next of that kind."""
    while True:
        message = json.loads(ws.recv(timeout=DEADLINE))
        if kind is None or message["type"] == kind:
            return message


def request(url, method, path, body=None):
    server = urlsplit(url)
    http = HTTPConnection(server.hostname, server.port, timeout=DEADLINE)
    try:
        http.request(method, path, body)
        response = http.getresponse()
        return response.status, response.read()
    finally:
        http.close()


def post(url, recipient, text):
    status, body = request(url, "POST", f"/paekli/{recipient}", text.encode())
    assert status == 201, (status, body)


def subscribe(url, **query):
    ws = open_at(url, "notifications", **query)
    assert "subscribed" in receive(ws)
    return ws


def what_is_posted_reaches_its_recipient_and_who_listens_to_all():
    for url in NOTIFICATIONS:
        with (
            subscribe(url, recipient="ada") as phone,
            subscribe(url, recipient="ada") as laptop,
            subscribe(url, recipient="bob") as bob,
            subscribe(url) as everything,
        ):
            for name in "ada", "bob", "ada":
                post(url, name, f"for {name}")
            for ws in phone, laptop:
                assert [receive(ws)["text"] for _ in range(2)] == ["for ada"] * 2
            assert receive(bob)["text"] == "for bob"
            assert [receive(everything)["recipient"] for _ in range(3)] == ["ada", "bob", "ada"]


def a_post_succeeds_when_nobody_listens_and_is_found_later():
    for url in NOTIFICATIONS:
        post(url, "nobody", "Grüezi")
        status, body = request(url, "GET", "/paekli/nobody")
        assert (status, json.loads(body)) == (200, [{"number": 1, "text": "Grüezi"}])


def a_subscription_to_no_name_is_refused():
    for url in NOTIFICATIONS:
        try:
            open_at(url, "notifications", recipient="a b").close()
        except InvalidStatus as refused:
            assert refused.response.status_code == 400
        else:
            raise AssertionError("it was let in")


def a_chat_is_resumed_where_it_was_left():
    with open_at(CHAT, "chat", room="python", name="Ada") as ada:
        receive(ada, "welcome")
        with open_at(CHAT, "chat", room="python", name="Ada") as other:
            assert receive(other, "welcome")["people"] == ["Ada", "Ada 2"]
            for number in range(5):
                ada.send(json.dumps({"text": str(number), "key": f"key {number}"}))
            said = [receive(other, "said") for _ in range(5)]
        with open_at(CHAT, "chat", room="python", name="Bob", since=said[1]["id"]) as bob:
            assert [receive(bob) for _ in range(3)] == said[2:]
            assert receive(bob)["you"] == "Bob"
            ada.send(json.dumps({"text": "psst", "to": "Bob"}))
            assert receive(bob, "private")["text"] == "psst"


Checks("Python, examples").run(
    what_is_posted_reaches_its_recipient_and_who_listens_to_all,
    a_post_succeeds_when_nobody_listens_and_is_found_later,
    a_subscription_to_no_name_is_refused,
    a_chat_is_resumed_where_it_was_left,
)
