//! The ACL users of docs/redis.md: the least rights with which Merit works.

use crate::Redis;

/// What a node that only admits requests needs.
pub const GATEWAY: [&str; 10] = [
    "~tb:*",
    "~merit:{tb:*",
    "+ping",
    "+evalsha",
    "+eval",
    "+hmget",
    "+hset",
    "+pexpire",
    "+pttl",
    "+time",
];

/// What it needs as well to tell what it admits, of which a price is made.
pub const USAGE: [&str; 6] =
    ["~merit:use:*", "~merit:nodes", "+set", "+zadd", "+zremrangebyscore", "+zremrangebyrank"];

/// What it needs as well where browsers open streams by ticket.
pub const TICKETS: [&str; 3] = ["~merit:ticket:*", "+set", "+getdel"];

/// What it needs as well to take over buckets that are put while it runs, and to tell agents what moved
/// their limits.
pub const LIVE: [&str; 2] = ["~merit:buckets", "+hgetall"];

/// What a tuner needs beside [`GATEWAY`].
pub const TUNER: [&str; 9] =
    ["~merit:*", "+hgetall", "+hdel", "+script|load", "+info", "+get", "+set", "+zrange", "+scan"];

/// What ingest and tuner need for the bus over streams of the topic `openclaw.ratings`.
pub const STREAMS: [&str; 27] = [
    "~openclaw.ratings:*",
    "+ping",
    "+evalsha",
    "+script|load",
    "+time",
    "+get",
    "+set",
    "+del",
    "+incr",
    "+exists",
    "+hget",
    "+hset",
    "+hdel",
    "+hsetnx",
    "+zadd",
    "+zrem",
    "+zrange",
    "+zremrangebyscore",
    "+xadd",
    "+xdel",
    "+xlen",
    "+xread",
    "+xrange",
    "+xtrim",
    "+xsetid",
    "+xinfo|stream",
    "+wait",
];

/// What both need as well on a cluster; `hget` and `del` for the marks.
pub const CLUSTER: [&str; 5] = ["+cluster|slots", "+cluster|info", "+asking", "+hget", "+del"];

/// What both need as well behind sentinels.
pub const SENTINEL: [&str; 1] = ["+role"];

/// Makes the user `merit` with password `hunter2` one with these rights and no others.
pub async fn allow(redis: &Redis, rights: &[&str]) {
    let mut command = vec!["ACL", "SETUSER", "merit", "reset", "on", ">hunter2"];
    command.extend(rights);
    let _: String = redis.ask(&command).await;
}
