"""Makes an image of one layer, in the form that `docker save` has: busybox, the file to write, the image's
name. It has busybox as its shell, and whatever programs are named after these, with their libraries; it
runs the first of them."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

busybox, path, name, *programs = sys.argv[1:]


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
files = {f"bin/{tool}": shell for tool in tools}
for program in programs:
    with open(program, "rb") as file:
        files["usr/bin/" + os.path.basename(program)] = file.read()
    for word in subprocess.check_output(["ldd", program], text=True).split():
        if word.startswith("/"):
            with open(word, "rb") as file:
                files[word.lstrip("/")] = file.read()
directories = {"tmp"}
for entry in files:
    while entry := os.path.dirname(entry):
        directories.add(entry)
layer = archive([(entry, None) for entry in sorted(directories)] + sorted(files.items()))
run = {"Env": ["PATH=/usr/bin:/bin"]}
if programs:
    run["Entrypoint"] = ["/usr/bin/" + os.path.basename(programs[0])]
else:
    run["Cmd"] = ["/bin/sh", "-c", "while :; do sleep 1000; done"]
config = json.dumps({
    "architecture": "amd64", "os": "linux",
    "config": run,
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
}).encode()
config_name = hashlib.sha256(config).hexdigest() + ".json"
manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
with open(path, "wb") as file:
    file.write(archive([(config_name, config), ("layer.tar", layer), ("manifest.json", manifest)]))
