"""Run a command where there is the loopback interface and no other.

python -m tests.integration.without_network COMMAND...
"""

import fcntl
import os
import socket
import struct
import sys

_SET_FLAGS, _UP = 0x8914, 0x1  # SIOCSIFFLAGS, IFF_UP


def main(command: list[str]) -> None:
    user = os.getuid(), os.getgid()
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
    for name, number in zip(("uid_map", "gid_map"), user, strict=True):
        if name == "gid_map":
            with open("/proc/self/setgroups", "w") as file:
                file.write("deny")
        with open(f"/proc/self/{name}", "w") as file:
            file.write(f"{number} {number} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh", b"lo", _UP))
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
