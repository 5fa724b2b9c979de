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

/// What a tuner needs as well.
pub const TUNER: [&str; 6] = ["~merit:*", "+hgetall", "+script|load", "+info", "+get", "+set"];

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
