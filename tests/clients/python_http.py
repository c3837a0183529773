"""Requests by the libraries that people use: which of them, and then URL, header, value, again and
again, on kept connections."""

import sys

how, arguments = sys.argv[1], sys.argv[2:]
if how == "requests":
    import requests
    import urllib3

    urllib3.disable_warnings()
    session = requests.Session()
    # Nothing of the machine's settings.
    session.trust_env = False
    session.verify = False
else:
    import httpx

    session = httpx.Client(verify=False, trust_env=False, http2=how == "httpx2")
for url, name, value in zip(arguments[::3], arguments[1::3], arguments[2::3]):
    answer = session.get(url, headers={name: value})
    assert answer.status_code == 200
    if how == "httpx2":
        assert answer.http_version == "HTTP/2"
