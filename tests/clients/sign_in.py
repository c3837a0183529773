"""Signs in to a server of its own, by one protocol, in clear or inside TLS: protocol, secret, and a
directory with a certificate where it is to be TLS. SMTP, IMAP, POP3 and FTP are spoken by the
clients of Python's library, PostgreSQL by psql; Redis, MQTT, LDAP and MySQL are written out here.
Prints where the server was."""

import base64
import ftplib
import imaplib
import os
import poplib
import smtplib
import socket
import ssl
import struct
import subprocess
import sys
import threading

protocol, secret = sys.argv[1], sys.argv[2]
certificate = sys.argv[3] if len(sys.argv) > 3 else None
address = os.environ.get("SIGN_IN_ADDRESS", "127.0.0.1")
listener = socket.create_server((address, 0))
port = listener.getsockname()[1]

client_context = ssl.create_default_context()
client_context.check_hostname = False
client_context.verify_mode = ssl.CERT_NONE


def lines(connection, greeting, answers):
    """A server of lines: what begins so is answered so."""
    stream = connection.makefile("rwb")
    stream.write(greeting)
    stream.flush()
    for line in stream:
        for begin, answer in answers:
            if begin in line.upper():
                stream.write(answer.replace(b"TAG", line.split()[0]))
                stream.flush()
                break


def wrapped(connection):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context.wrap_socket(connection, server_side=True)


def ftp(connection):
    greeting = b"220 fake\r\n"
    if certificate:
        connection.sendall(greeting)
        connection.recv(100)
        connection.sendall(b"234 go on\r\n")
        connection, greeting = wrapped(connection), b""
    lines(connection, greeting, [(b"USER", b"331 who\r\n"), (b"PASS", b"230 ok\r\n"), (b"", b"221 bye\r\n")])


def postgres(connection):
    stream = connection.makefile("rwb")
    length = struct.unpack("!i", stream.read(4))[0]
    if stream.read(length - 4)[:4] == struct.pack("!i", 80877103):
        stream.write(b"S" if certificate else b"N")
        stream.flush()
        stream = wrapped(connection).makefile("rwb") if certificate else stream
        length = struct.unpack("!i", stream.read(4))[0]
        stream.read(length - 4)
    stream.write(b"R" + struct.pack("!ii", 8, 3))
    stream.flush()
    kind, length = struct.unpack("!ci", stream.read(5))
    stream.read(length - 4)
    stream.write(b"E" + struct.pack("!i", 4 + 8) + b"SFATAL\0\0")
    stream.flush()


def taken(connection):
    """A server that takes everything, and says one byte for each piece."""
    while connection.recv(4096):
        connection.sendall(b"+")


SERVERS = {
    "smtp-plain": lambda c: lines(c, b"220 fake\r\n", [
        (b"EHLO", b"250-fake\r\n250 AUTH PLAIN\r\n"), (b"AUTH", b"235 ok\r\n"), (b"QUIT", b"221 bye\r\n")]),
    "smtp-login": lambda c: lines(c, b"220 fake\r\n", [
        (b"EHLO", b"250-fake\r\n250 AUTH LOGIN\r\n"), (b"AUTH", b"334 UGFzc3dvcmQ6\r\n"),
        (b"QUIT", b"221 bye\r\n"), (b"", b"235 ok\r\n")]),
    "imap": lambda c: lines(c, b"* OK fake\r\n", [
        (b"CAPABILITY", b"* CAPABILITY IMAP4REV1\r\nTAG OK done\r\n"), (b"LOGIN", b"TAG OK done\r\n"),
        (b"LOGOUT", b"* BYE\r\nTAG OK done\r\n")]),
    "pop3": lambda c: lines(c, b"+OK fake\r\n", [(b"", b"+OK\r\n")]),
    "ftp": ftp,
    "postgresql": postgres,
}


# They begin in clear, and go on inside TLS.
BEGIN_WITHOUT = ["ftp", "postgresql"]


def serve():
    connection, _ = listener.accept()
    if certificate and protocol not in BEGIN_WITHOUT:
        connection = wrapped(connection)
    SERVERS.get(protocol, taken)(connection)


server = threading.Thread(target=serve, daemon=True)
server.start()


def raw(*writes):
    connection = socket.create_connection((address, port))
    if certificate:
        connection = client_context.wrap_socket(connection)
    for write in writes:
        connection.sendall(write)
        connection.recv(1)
    connection.close()


def field(text):
    return struct.pack("!H", len(text)) + text


if protocol.startswith("smtp"):
    client = (
        smtplib.SMTP_SSL(address, port, context=client_context) if certificate else smtplib.SMTP(address, port)
    )
    client.login("fake-user", secret)
    client.quit()
elif protocol == "imap":
    client = (
        imaplib.IMAP4_SSL(address, port, ssl_context=client_context) if certificate else imaplib.IMAP4(address, port)
    )
    client.login("fake-user", secret)
elif protocol == "pop3":
    client = (
        poplib.POP3_SSL(address, port, context=client_context) if certificate else poplib.POP3(address, port)
    )
    client.user("fake-user")
    client.pass_(secret)
elif protocol == "ftp":
    client = ftplib.FTP_TLS(context=client_context) if certificate else ftplib.FTP()
    client.connect(address, port)
    client.login("fake-user", secret)
elif protocol == "postgresql":
    mode = "require" if certificate else "disable"
    subprocess.run(
        ["psql", f"host={address} port={port} user=fake dbname=fake sslmode={mode}", "-c", "select 1"],
        env={**os.environ, "PGPASSWORD": secret}, check=False, capture_output=True)
elif protocol == "redis":
    parts = [b"AUTH", b"default", secret.encode()]
    raw(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
elif protocol == "mqtt":
    body = field(b"MQTT") + b"\x04\xc2\0\x3c" + field(b"client") + field(b"fake-user") + field(secret.encode())
    raw(bytes([0x10, len(body)]) + body)
elif protocol == "ldap":
    name = b"cn=fake"
    body = b"\x02\x01\x03\x04" + bytes([len(name)]) + name + b"\x80" + bytes([len(secret)]) + secret.encode()
    body = b"\x02\x01\x01\x60" + bytes([len(body)]) + body
    raw(b"\x30" + bytes([len(body)]) + body)
elif protocol == "mysql":
    hello = struct.pack("<IIB", 1 << 9 | 1 << 15 | 1 << 19, 1 << 24, 255) + bytes(23) + b"fake\0\0caching_sha2_password\0"
    password = secret.encode() + b"\0"
    packet = lambda number, body: struct.pack("<I", len(body))[:3] + bytes([number]) + body
    raw(packet(1, hello), packet(3, password))
else:
    sys.exit(f"no protocol {protocol}")
print(f"{address}:{port}")
