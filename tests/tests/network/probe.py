"""Tries many things at once from within a guest.

Reads a JSON list of attempts from standard input; prints a list of what came of each, in order.
Whatever would need a reply counts as done (`ok`) only when there was one.
"""

import json
import os
import socket
import struct
import sys
import threading
import time

GATEWAY = "198.18.0.1"
# Nobody says this.
NEVER = b"\0\0\0never"


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def resolve(address=None, name=None, **_):
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return {"ok": True, "text": " ".join(sorted({entry[4][0] for entry in found}))}


def receive(connection, until, limit, end):
    """What comes until a text, a number of bytes, or the end."""
    data = b""
    while len(data) < limit and until not in data:
        connection.settimeout(max(0.01, end - time.monotonic()))
        try:
            part = connection.recv(min(65536, limit - len(data)))
        except TimeoutError:
            break
        if not part:
            break
        data += part
    return data


def connect(address, port, end, source=None):
    connection = socket.socket(family(address), socket.SOCK_STREAM)
    if source:
        connection.bind((source, 0))
    connection.settimeout(max(0.01, end - time.monotonic()))
    connection.connect((address, port))
    return connection


def tcp(address=None, port=None, send="", then=None, pause=0.3, limit=65536, end=0, until=None, **_):
    """Says bytes (in hexadecimal), perhaps more of them after a pause, and hears what comes. Done
    when that has `until` in it: the gateway itself may say why it refuses."""
    with connect(address, port, end) as connection:
        text = b""
        error = None
        try:
            if send:
                connection.sendall(bytes.fromhex(send))
            for more in then or []:
                time.sleep(pause)
                connection.sendall(bytes.fromhex(more))
            text = receive(connection, until.encode("latin-1") if until else NEVER, limit, end)
        except OSError as e:
            error = repr(e)
    text = text.decode("latin-1")
    return {"ok": until in text if until else bool(text), "connected": True, "text": text, "error": error}


def tls(address=None, port=443, name=None, request="", alpn=None, end=0, **_):
    """A handshake that believes any certificate, then a request."""
    import ssl  # It takes an emulated guest longer than all the rest.

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    with connect(address, port, end) as plain:
        with context.wrap_socket(plain, server_hostname=name) as connection:
            connection.sendall(request.encode())
            text = receive(connection, b"request=", 65536, end)
    return {"ok": True, "text": text.decode("latin-1")}


def udp(address=None, port=None, send="", end=0, **_):
    with socket.socket(family(address), socket.SOCK_DGRAM) as connection:
        connection.connect((address, port))
        while (left := end - time.monotonic()) > 0:
            connection.send(bytes.fromhex(send))
            connection.settimeout(min(left, 1.5))
            try:
                return {"ok": True, "text": connection.recv(65536).decode("latin-1")}
            except TimeoutError:
                continue
    return {"ok": False, "error": "no answer"}


def names(name):
    """A name in a message; labels may be given as bytes in hexadecimal."""
    labels = [bytes.fromhex(l) for l in name] if isinstance(name, list) else name.encode().split(b".")
    return b"".join(bytes([len(label)]) + label for label in labels if label) + b"\0"


def skip_name(message, at):
    while message[at]:
        if message[at] >= 192:
            return at + 2
        at += message[at] + 1
    return at + 1


def dns(address=GATEWAY, port=53, name="", kind=1, klass=1, tcp=False, extra="", raw=None, end=0, **_):
    """Asks; the code of the answer and its records. An answer that has none of the type counts
    as none."""
    question = names(name) + struct.pack(">2H", kind, klass)
    message = struct.pack(">6H", 4711, 0x100, 1, 0, 0, 1 if extra else 0) + question
    message = bytes.fromhex(raw) if raw else message + bytes.fromhex(extra)
    if tcp:
        with connect(address, port, end) as connection:
            connection.sendall(struct.pack(">H", len(message)) + message)
            answer = receive(connection, NEVER, 2, end)
            if len(answer) < 2:
                return {"ok": False, "error": "no answer"}
            answer = receive(connection, NEVER, struct.unpack(">H", answer)[0], end)
    else:
        with socket.socket(family(address), socket.SOCK_DGRAM) as connection:
            connection.connect((address, port))
            connection.send(message)
            connection.settimeout(max(0.01, end - time.monotonic()))
            answer = connection.recv(65536)
    code, flags = answer[3] & 15, answer[2]
    records, at = [], 12
    for _ in range(struct.unpack(">H", answer[4:6])[0]):
        at = skip_name(answer, at) + 4
    for _ in range(struct.unpack(">H", answer[6:8])[0]):
        at = skip_name(answer, at)
        kind_, _, ttl, length = struct.unpack(">2HIH", answer[at : at + 10])
        data = answer[at + 10 : at + 10 + length]
        at += 10 + length
        shown = socket.inet_ntop({4: socket.AF_INET, 16: socket.AF_INET6}[length], data) if (
            kind_ in (1, 28) and length in (4, 16)
        ) else data.hex()
        records.append({"kind": kind_, "ttl": ttl, "data": shown})
    text = " ".join(r["data"] for r in records if r["kind"] == kind)
    return {"ok": bool(text), "text": text, "rcode": code, "truncated": bool(flags & 2), "records": records}


def ping(address=None, body="", end=0, **_):
    six = ":" in address
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    with socket.socket(family(address), socket.SOCK_RAW, protocol) as raw:
        if not six and address.endswith(".255"):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        mine = os.getpid() & 0xFFFF ^ threading.get_ident() >> 12 & 0xFFFF
        head = struct.pack(">BBHHH", 128 if six else 8, 0, 0, mine, 1)
        message = head + bytes.fromhex(body)
        if not six:
            message = message[:2] + struct.pack(">H", checksum(message)) + message[4:]
        raw.sendto(message, (address, 0))
        while (left := end - time.monotonic()) > 0:
            raw.settimeout(left)
            answer, sender = raw.recvfrom(65536)
            answer = answer if six else answer[(answer[0] & 15) * 4 :]
            # Somebody on the way says no, and shows what to: a header, and the first of its content.
            shown = 8 + (40 if six else 20)
            if answer[0] == (1 if six else 3) and answer[shown + 4 : shown + 6] == message[4:6]:
                return {"ok": False, "error": "prohibited"}
            if answer[0] == (129 if six else 0) and answer[4:6] == struct.pack(">H", mine):
                return {"ok": True, "text": sender[0]}
    return {"ok": False, "error": "no answer"}


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def device():
    return next(name for _, name in socket.if_nameindex() if name != "lo")


def frame(send="", end=0, heard=None, **_):
    """Puts a frame on the wire. It is done if a frame comes back that has these bytes in it."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as raw:
        raw.bind((device(), 0))
        raw.send(bytes.fromhex(send))
        wanted = bytes.fromhex(heard or "")
        while wanted and (left := end - time.monotonic()) > 0:
            raw.settimeout(left)
            try:
                data, origin = raw.recvfrom(65536)
            except TimeoutError:
                break
            if origin[2] != socket.PACKET_OUTGOING and wanted in data:
                return {"ok": True, "text": data.hex()}
    return {"ok": False, "error": "nothing came back"}


KINDS = {f.__name__: f for f in (resolve, tcp, tls, udp, dns, ping, frame)}


def attempt(task, results, index):
    begin = time.monotonic()
    end = begin + task.get("timeout", 4)
    try:
        result = KINDS[task["do"]](**task, end=end)
    except Exception as e:  # Whatever it is, it is the result.
        result = {"ok": False, "error": f"{type(e).__name__}: {e}"}
    results[index] = result | {"seconds": round(time.monotonic() - begin, 2)}


def main():
    tasks = json.load(sys.stdin)
    results = [None] * len(tasks)
    threads = []
    for index, task in enumerate(tasks):
        thread = threading.Thread(target=attempt, args=(task, results, index), daemon=True)
        thread.start()
        threads.append(thread)
        if task.get("alone"):
            thread.join()
    for thread in threads:
        thread.join(30)
    print(json.dumps([result or {"ok": False, "error": "stuck"} for result in results]))


main()
