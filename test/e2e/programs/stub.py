"""stub.py KIND ... -child NUMBER DESCRIPTOR FOLDER: a child that starts quickly, in several kinds.

serve: says that it is ready, tells every client who it is, and ends well when told to or left alone
stubborn: the same, but it does not end on SIGTERM
lame: the same, but only number 0; the others end with 1 as soon as that one has been ready
A number: ends at once, with that status
"""

import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

kind, number, descriptor, folder = sys.argv[1], int(sys.argv[-3]), int(sys.argv[-2]), Path(sys.argv[-1])


def serve(listener: socket.socket) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "stubborn" else lambda *_: sys.exit(0))
    os.write(0, b"ready\n")
    (folder / "ready").touch()
    body = json.dumps({"number": number, "pid": os.getpid()})
    reply = f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    while 0 not in select.select([descriptor, 0], [], [])[0]:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(reply)
    shutil.rmtree(folder, ignore_errors=True)


if kind.isdecimal():
    sys.exit(int(kind))
if kind == "lame" and number > 0:
    while not (folder / "ready").exists():
        time.sleep(0.01)
    sys.exit(1)
with socket.socket(fileno=descriptor) as inherited:
    serve(inherited)
