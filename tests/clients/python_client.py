"""Requests, one after the other and on kept connections: URL, header, value, again and again."""

import http.client
import ssl
import sys
import urllib.parse

context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
connections = {}
arguments = sys.argv[1:]
for url, name, value in zip(arguments[::3], arguments[1::3], arguments[2::3]):
    place = urllib.parse.urlsplit(url).netloc
    if place not in connections:
        connections[place] = http.client.HTTPSConnection(place, context=context)
    connections[place].request("GET", "/", headers={name: value})
    connections[place].getresponse().read()
