"""A server of tokens inside TLS and a client that signs in to it again and again, each a process of
its own: certificate, what is presented, and what is minted. Prints the server's port, and ends when
its input does."""

import http.client
import http.server
import json
import os
import ssl
import sys
import threading

certificate, presented, minted = sys.argv[1:4]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.dumps({"auth": {"client_token": minted, "lease_duration": 60}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate)
server.socket = context.wrap_socket(server.socket, server_side=True)
port = server.server_address[1]
serving = os.fork()
if serving == 0:
    server.serve_forever()
print(port, flush=True)
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
trusting = ssl.create_default_context(cafile=certificate)
while not ended.wait(0.05):
    connection = http.client.HTTPSConnection("vault.example", port, context=trusting)
    # No name server is asked.
    connection._create_connection = lambda place, *rest: __import__("socket").create_connection(("127.0.0.1", place[1]))
    connection.request("POST", "/v1/auth/renew", headers={"X-Vault-Token": presented})
    connection.getresponse().read()
    connection.close()
os.kill(serving, 9)
