"""Reads a key of AWS, then presents it at many places: python3 many.py FILE COUNT RATE.

Each place is another address of the loopback network, and another name; RATE is in connections a second.
"""

import socket
import struct
import sys
import time

file, count, rate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(file, encoding="utf-8") as credential:
    key = credential.read().split("aws_access_key_id = ")[1].split()[0]
sign = f"AWS4-HMAC-SHA256 Credential={key}/20261123/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=00"
server = socket.create_server(("0.0.0.0", 0))
port = server.getsockname()[1]
began = time.monotonic()
for number in range(count):
    place = f"127.{1 + number // 62500}.{number // 250 % 250}.{1 + number % 250}"
    head = f"GET / HTTP/1.1\r\nHost: place-{number}.example\r\nAuthorization: {sign}\r\n\r\n"
    with socket.socket() as connection:
        # Closed without a farewell: nothing of it is left behind.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.connect((place, port))
        accepted, _ = server.accept()
        connection.send(head.encode())
        accepted.close()
    # The load is to be of this rate, and no faster.
    early = began + number / rate - time.monotonic()
    if early > 0.05:
        time.sleep(early)
