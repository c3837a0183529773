"""Asks a resolver of its own for a name, which answers with an address of the caller's choice."""

import socket
import sys
import threading

name, address, own = sys.argv[1:]
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((own, 53))


def answer():
    query, peer = server.recvfrom(512)
    head = query[:2] + bytes([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0])
    record = bytes([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]) + socket.inet_aton(address)
    server.sendto(head + query[12:] + record, peer)


threading.Thread(target=answer).start()
labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect((own, 53))
client.send(b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1")
client.recv(512)
