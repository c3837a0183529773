"""The same, each request on a connection of its own, all at once."""

import asyncio
import ssl
import sys
import urllib.parse

context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE


async def get(url, name, value):
    place = urllib.parse.urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, ssl=context)
    writer.write(f"GET / HTTP/1.1\r\nHost: x\r\n{name}: {value}\r\nConnection: close\r\n\r\n".encode())
    await reader.read()
    writer.close()


async def main(arguments):
    await asyncio.gather(*(get(*three) for three in zip(arguments[::3], arguments[1::3], arguments[2::3])))


asyncio.run(main(sys.argv[1:]))
