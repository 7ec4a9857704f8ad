"""Names of keys and channels.

Everything of one model shares the hash tag `{prefix:model}`, so that one script may touch all of it in a
cluster too:

    {p:m}:log:ID      list    the log: the entry with index N is event number N
    {p:m}:meta:ID     hash    request, owner, attempt, silent, deaths, failures, nodes that follow, the worker
                              that served last what it continues, until when it is left for that one, …
    {p:m}:waiting     zset    ids that wait, by when they were made
    {p:m}:line:USER   list    one user's ids that wait
    {p:m}:ring        list    users who have a line, in the order in which they are served
    {p:m}:running     zset    delivered ids, by when their lease ends
    {p:m}:last:CONV   string  the worker that served a conversation last; for an hour
    {p:m}:workers     zset    living workers, by when they count as dead; with :rooms and :worker:NAME
    {p:m}:resting     zset    those of them that take nothing now, with :worker:NAME
    {p:m}:seen        hash    when anybody was here last, and until when nothing is taken over
    {p:m}:dead        stream  dead letters
    {p:m}:ready       channel there is something to claim
    p:node:NAME       channel news for one server process, key with its sign of life
    p:worker:NAME     channel news for one worker process
    p:tick:NAME       channel what a process says to itself

Limits have the tag `{p}`, which no model has: see `limiter`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Makes the names under one prefix."""

    prefix: str

    def base(self, model: str) -> str:
        """What all keys of a model begin with."""
        return f"{{{self.prefix}:{model}}}"

    def meta(self, model: str, response_id: str) -> str:
        """What there is as long as a response is known."""
        return f"{self.base(model)}:meta:{response_id}"

    @property
    def limits(self) -> str:
        """What all keys of budgets begin with."""
        return f"{{{self.prefix}}}:limits"

    @property
    def nodes(self) -> str:
        return f"{self.prefix}:node:"

    @property
    def workers(self) -> str:
        return f"{self.prefix}:worker:"

    def tick(self, name: str) -> str:
        return f"{self.prefix}:tick:{name}"
