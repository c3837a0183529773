"""A node that is full: python3 fleet.py GROUPS DIRECTORY UNITS CREDENTIALS PLACES

In each of UNITS control groups below GROUPS, processes read CREDENTIALS keys of AWS, each process one, and connect to
PLACES addresses of a network of their own with it. The last process of a unit stays until standard input ends.
"""

import os
import socket
import struct
import sys

groups, directory = sys.argv[1:3]
units, credentials, places = map(int, sys.argv[3:])
server = socket.create_server(("0.0.0.0", 0), backlog=places)
port = server.getsockname()[1]
done, tell = os.pipe()
stay, let_go = os.pipe()


def work(unit: int, credential: int) -> None:
    """What one process does; it ends with it."""
    with open(f"{groups}/fleet-{unit}.service/cgroup.procs", "w", encoding="ascii") as group:
        group.write(str(os.getpid()))
    number = unit * credentials + credential
    home = f"{directory}/{number}/.aws"
    os.makedirs(home)
    path = f"{home}/credentials"
    with open(path, "w", encoding="ascii") as file:
        file.write(f"[default]\naws_access_key_id = AKIAFAKE{number:012}\naws_secret_access_key = FAKE{number:036}\n")
    with open(path, "rb") as file:
        file.read()
    for place in range(places):
        with socket.create_connection((f"10.99.{unit % 250}.{1 + place}", port)) as connection:
            # Closed without a farewell: nothing of it is left behind.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted, _ = server.accept()
            accepted.close()
    os.write(tell, b".")
    if credential == credentials - 1:
        os.close(let_go)
        os.read(stay, 1)
    os._exit(0)


children = []
for unit in range(units):
    os.makedirs(f"{groups}/fleet-{unit}.service")
    for credential in range(credentials):
        child = os.fork()
        if child == 0:
            work(unit, credential)
        os.read(done, 1)
        if credential == credentials - 1:
            children.append(child)
        else:
            os.waitpid(child, 0)
print("full", flush=True)
sys.stdin.read()
os.close(let_go)
for child in children:
    os.waitpid(child, 0)
for unit in range(units):
    os.rmdir(f"{groups}/fleet-{unit}.service")
