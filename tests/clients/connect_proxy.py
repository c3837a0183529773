"""A proxy for CONNECT and SOCKS5 that connects to one server, whatever server it is asked for:
SERVER_PORT. Prints its own port."""
import socket
import sys
import threading


def copy(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def read(client, size):
    data = b""
    while len(data) < size:
        more = client.recv(size - len(data))
        if not more:
            raise OSError("the client has left")
        data += more
    return data


def accept_socks(client):
    read(client, read(client, 2)[1])
    client.sendall(b"\x05\x00")
    kind = read(client, 4)[3]
    length = {1: 4, 4: 16}.get(kind) or read(client, 1)[0]
    read(client, length + 2)
    client.sendall(b"\x05\x00\x00\x01\0\0\0\0\0\0")


def accept_connect(client):
    head = b""
    while b"\r\n\r\n" not in head:
        head += read(client, 1)
    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")


def serve(client):
    is_socks = client.recv(1, socket.MSG_PEEK) == b"\x05"
    (accept_socks if is_socks else accept_connect)(client)
    server = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    threading.Thread(target=copy, args=(server, client), daemon=True).start()
    copy(client, server)


listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
