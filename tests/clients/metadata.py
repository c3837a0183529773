"""A metadata service as AWS has it, on 169.254.169.254:80, and an OAuth token endpoint beside it: it
answers with the secrets that it is given, and goes on in the background."""

import http.server
import json
import os
import sys

token, key, secret, session, access = sys.argv[1:6]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body, kind="text/plain"):
        body = body.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        self.answer(token)

    def do_GET(self):
        self.answer(json.dumps({
            "Code": "Success", "LastUpdated": "2026-01-01T00:00:00Z", "Type": "AWS-HMAC",
            "AccessKeyId": key, "SecretAccessKey": secret, "Token": session,
            "Expiration": "2026-01-01T06:00:00Z"}, indent=2), "application/json")

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(json.dumps({"token_type": "Bearer", "expires_in": 3600, "access_token": access}))

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("0.0.0.0", 80), Handler)
if os.fork():
    os._exit(0)
server.serve_forever()
