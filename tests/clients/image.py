"""Makes an image of one layer, with busybox as its shell and nothing else, in the form that `docker
save` has: busybox, the file to write, the image's name."""

import hashlib
import io
import json
import sys
import tarfile

busybox, path, name = sys.argv[1:4]


def archive(entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for entry, content in entries:
            info = tarfile.TarInfo(entry)
            info.mode = 0o755
            if content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


with open(busybox, "rb") as file:
    shell = file.read()
tools = ["sh", "cat", "wget", "sleep", "sed", "cp", "nc"]
layer = archive([("bin", None), ("tmp", None)] + [(f"bin/{tool}", shell) for tool in tools])
config = json.dumps({
    "architecture": "amd64", "os": "linux",
    "config": {"Cmd": ["/bin/sh", "-c", "while :; do sleep 1000; done"], "Env": ["PATH=/bin"]},
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
}).encode()
config_name = hashlib.sha256(config).hexdigest() + ".json"
manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
with open(path, "wb") as file:
    file.write(archive([(config_name, config), ("layer.tar", layer), ("manifest.json", manifest)]))
