"""Functions and a class that record when a pickle calls them: none may."""

from __future__ import annotations

calls: list[str] = []


def call(*arguments: object) -> str:
    calls.append("call")
    return "called"


class Canary:
    def __new__(cls, *arguments: object) -> Canary:
        calls.append("__new__")
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        calls.append("__setstate__")
