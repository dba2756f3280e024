"""Servers of tests that speak HTTP by hand."""

import socket


def read_request(connection: socket.socket) -> None:
    """Read a whole request, because a connection that is closed with unread bytes is reset instead of answered."""
    with connection.makefile("rb") as stream:
        length = 0
        while (line := stream.readline()).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        stream.read(length)
