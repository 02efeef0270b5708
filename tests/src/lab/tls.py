"""The lab's server of TLS: a real handshake, then who was asked for, in HTTP.

Ends when its standard input does, which is when the lab is gone.
"""

import os
import socketserver
import ssl
import sys
import threading

CERTIFICATE, KEY, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERTIFICATE, KEY)
context.set_alpn_protocols(["h2", "http/1.1"])


def note_name(connection, name, _):
    connection.asked_for = name


context.sni_callback = note_name


class Handler(socketserver.BaseRequestHandler):
    """One connection: a request, or the first bytes of something else."""

    def handle(self):
        self.request.settimeout(60)
        try:
            with context.wrap_socket(self.request, server_side=True) as tls:
                self.answer(tls)
        except OSError:
            pass

    def answer(self, tls):
        name = getattr(tls, "asked_for", None)
        while head := tls.recv(65536):
            line = head.split(b"\r\n", 1)[0].decode("latin-1")
            body = f"tls sni={name} alpn={tls.selected_alpn_protocol()} request={line}\n".encode()
            tls.sendall(b"HTTP/1.1 200 Lab\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


class Server(socketserver.ThreadingTCPServer):
    """A thread for each connection, none of which keeps the process alive."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256


with Server(("127.0.0.1", PORT), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    os.read(0, 1)
