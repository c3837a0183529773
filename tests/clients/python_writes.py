"""Writes to a TLS object whose other end is in memory. Each line of input is a task: `plain`, which
is 16 KiB without a header, or `head`, which is 1 KiB of headers with a credential among them. The
answer is nanoseconds a write, the lower decile of many. First comes the path of the library."""

import ssl
import sys
import time

from os.path import realpath

CERTIFICATE = sys.argv[1]
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain(CERTIFICATE)
client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
client.check_hostname = False
client.verify_mode = ssl.CERT_NONE
there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
ours = client.wrap_bio(back, there, False)
theirs = server.wrap_bio(there, back, True)


def shake(side):
    try:
        side.do_handshake()
        return True
    except ssl.SSLWantReadError:
        return False


while not all([shake(ours), shake(theirs)]):
    pass

FAKE = b"FAKE-bench-0000000000000000000000000001"
HEAD = b"GET / HTTP/1.1\r\nHost: bench.example\r\n"
END = b"Authorization: Bearer " + FAKE + b"\r\n\r\n"
FILLER = b"X-Filler: " + 54 * b"x" + b"\r\n"
TASKS = {
    "plain": 16384 * b"x",
    "head": HEAD + FILLER * ((1024 - len(HEAD) - len(END)) // len(FILLER)) + END,
}


def one(data):
    begin = time.perf_counter_ns()
    ours.write(data)
    took = time.perf_counter_ns() - begin
    there.read()
    return took


with open("/proc/self/maps", encoding="utf-8") as maps:
    libraries = {line.split()[-1] for line in maps if "libssl" in line}
print(realpath(libraries.pop()), flush=True)
for line in sys.stdin:
    times = sorted(one(TASKS[line.strip()]) for _ in range(3000))
    print(times[len(times) // 10], flush=True)
