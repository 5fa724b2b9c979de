//! The Redis scripts held to the arithmetic of [`crate::bucket`], and what they store read back.

use ::redis::aio::ConnectionLike;
use std::time::Duration;

use super::{Draw, agent, ask, bucket, change, limits, write_one};
use crate::{
    AgentId,
    bucket::{
        CAPACITY_MAX, CLOCK_SLACK_MS, Level, Limits, MicroTokensPerSecond, NanoTokens,
        REFILL_RATE_MAX, Tokens, refill, wait_ms,
    },
    store::{
        Decision, Spend, Tune, Written,
        redis::{BUCKET_LUA, HELD},
    },
};

/// Holds `bucket.lua` to [`crate::bucket`] by `cases` random vectors on the server at `url`.
pub async fn lua_agrees_with_rust(url: &str, cases: usize) {
    let client = ::redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let script = format!(
        "{BUCKET_LUA}\nlocal out = {{}}\nfor i = 1, #ARGV, 5 do\n\
         local l, c, r, e, t = tonumber(ARGV[i]), tonumber(ARGV[i+1]), tonumber(ARGV[i+2]), tonumber(ARGV[i+3]), tonumber(ARGV[i+4])\n\
         out[#out+1] = refill(l, c * NANO, r, e)\nout[#out+1] = wait_ms(l, t * NANO, r)\nend\nreturn out"
    );
    let mut draw = Draw::new(1);
    for _ in 0..cases.div_ceil(500) {
        let mut command = ::redis::cmd("EVAL");
        command.arg(&script).arg(0);
        let mut expected = Vec::new();
        for _ in 0..500 {
            let capacity = Tokens::new(draw.up_to(CAPACITY_MAX)).unwrap();
            let rate = MicroTokensPerSecond::new(draw.up_to(REFILL_RATE_MAX * 1_000_000)).unwrap();
            let below = i64::try_from(draw.up_to(CAPACITY_MAX * 1_000_000_000)).unwrap();
            let level = NanoTokens(capacity.nano().0 - below);
            // A Unix time in milliseconds, the longest wait that can be, is below 2^42 until 2109.
            let elapsed_ms = draw.up_to(1 << 42);
            let target = Tokens::new(draw.up_to(capacity.get())).unwrap();
            command
                .arg(level.0)
                .arg(capacity.get())
                .arg(rate.micro())
                .arg(elapsed_ms)
                .arg(target.get());
            let limits = Limits::new(capacity, rate);
            let wait = wait_ms(level, target.nano(), rate);
            let wait = wait.map_or(-1, |wait| i64::try_from(wait).unwrap());
            let case = (level, limits, elapsed_ms, target);
            expected.push((case, [refill(level, &limits, elapsed_ms).0, wait]));
        }
        let answers: Vec<i64> = command.query_async(&mut connection).await.unwrap();
        for ((case, expected), answer) in expected.iter().zip(answers.chunks_exact(2)) {
            assert_eq!(answer, expected, "refill and wait of {case:?}");
        }
    }
}

/// Drives `spend.lua` through `steps` random spends, waits and changes of limits of one agent, and
/// holds every field it stores to the pure model. Half of the spends touch a second bucket too, of which
/// they take nothing: the script has a way of its own for a single one.
pub async fn redis_follows_the_model<S: Spend + Tune>(store: &S, url: &str, steps: usize) {
    let client = ::redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let (agent, configured) = (agent("model"), limits(1000.0, 50));
    let (other, key) = (bucket("other", configured), format!("tb:{agent}"));
    let bucket = bucket("default", configured);
    let mut draw = Draw::new(7);
    let mut model: Option<Level> = None;
    let (mut in_force, mut rev) = (configured, 0);
    for step in 0..steps {
        match draw.below(4) {
            0 => {
                let capacity = draw.up_to(if step % 2 == 0 { 100 } else { CAPACITY_MAX });
                let micro = draw.up_to(if step % 3 == 0 { 5_000_000 } else { 9_000_000_000_000 });
                in_force = Limits::new(
                    Tokens::new(capacity).unwrap(),
                    MicroTokensPerSecond::new(micro).unwrap(),
                );
                let written = write_one(store, change(&agent, rev, in_force)).await;
                assert!(matches!(written, Written::Done { .. }), "step {step}: {written:?}");
                rev += 1;
            }
            1 => {
                if let Some(level) = &mut model {
                    // Time passes; or the clock was set back, within what is ignored and beyond it.
                    match draw.below(4) {
                        0 => level.at_ms += draw.up_to(1 << 34),
                        1 => level.at_ms += draw.up_to(CLOCK_SLACK_MS),
                        _ => level.at_ms -= draw.up_to(level.at_ms.min(1 << 34)),
                    }
                    set_level(&mut connection, &key, level).await;
                }
            }
            _ => {
                let cost =
                    Tokens::new(draw.up_to(if step % 5 == 0 { CAPACITY_MAX } else { 60 })).unwrap();
                let both = [(&bucket, cost.get()), (&other, 0)];
                let touched = if draw.below(2) == 0 { &both[..1] } else { &both };
                let verdict = ask(store, &agent, touched).await;
                if cost == Tokens::ZERO {
                    continue;
                }
                let stored = level_of(&mut connection, &key).await.unwrap();
                let level = model.get_or_insert_with(|| Level::full(in_force, stored.at_ms));
                level.settle(in_force, stored.at_ms);
                let expected = if level.affords(cost) {
                    level.take(cost);
                    Decision::Admitted
                } else {
                    let wait_ms = level.wait_ms(cost);
                    level.refuse(cost);
                    Decision::Denied { wait_ms }
                };
                assert_eq!(verdict.decision, expected, "step {step}, cost {cost}, {level:?}");
                assert_eq!(stored, *level, "step {step}, cost {cost}");
                assert_eq!(verdict.first.tokens, level.tokens);
            }
        }
    }
}

/// Returns the level of the default bucket as the scripts store it: six little-endian doubles.
pub async fn level_of<C: ConnectionLike>(connection: &mut C, key: &str) -> Option<Level> {
    let mut command = ::redis::cmd("HGET");
    command.arg(key).arg(HELD);
    let held: Option<Vec<u8>> = command.query_async(connection).await.unwrap();
    held.map(|held| unpack(&held))
}

async fn set_level(connection: &mut ::redis::aio::MultiplexedConnection, key: &str, level: &Level) {
    let mut command = ::redis::cmd("HSET");
    command.arg(key).arg(HELD).arg(pack(level));
    command.query_async::<()>(connection).await.unwrap();
}

/// Lets `duration` pass for all of the agent's buckets on the server of `connection`, by moving what
/// they last settled into the past.
pub async fn age<C: ConnectionLike>(connection: &mut C, agent: &AgentId, duration: Duration) {
    let key = format!("tb:{agent}");
    let mut command = ::redis::cmd("HGETALL");
    command.arg(&key);
    let fields: Vec<(String, Vec<u8>)> = command.query_async(connection).await.unwrap();
    for (field, held) in fields.iter().filter(|(field, _)| field.ends_with(HELD)) {
        let mut level = unpack(held);
        level.at_ms -= u64::try_from(duration.as_millis()).unwrap();
        let mut command = ::redis::cmd("HSET");
        command.arg(&key).arg(field).arg(pack(&level));
        command.query_async::<()>(connection).await.unwrap();
    }
}

/// Lets `duration` pass for the lease of the market on the server of `connection`, by ending it that
/// much sooner.
pub async fn age_market<C: ConnectionLike>(connection: &mut C, duration: Duration) {
    let mut command = ::redis::cmd("HINCRBY");
    let sooner = i64::try_from(duration.as_millis()).unwrap();
    command.arg("merit:price").arg("until").arg(-sooner);
    command.query_async::<i64>(connection).await.unwrap();
}

#[allow(clippy::cast_precision_loss, reason = "all of them are below 2^53")]
fn pack(level: &Level) -> Vec<u8> {
    let Level { tokens, at_ms, admitted, denied, limits } = *level;
    let whole = [at_ms, admitted, denied, limits.capacity().get(), limits.refill().micro()];
    let numbers = std::iter::once(tokens.0 as f64).chain(whole.map(|number| number as f64));
    numbers.flat_map(f64::to_le_bytes).collect()
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "checked to come back"
)]
fn unpack(held: &[u8]) -> Level {
    let (bytes, []) = held.as_chunks::<8>() else { panic!("{held:?}") };
    let numbers: Vec<f64> = bytes.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
    let [tokens, at_ms, admitted, denied, capacity, rate] = numbers[..] else { panic!("{held:?}") };
    let whole = |number: f64| {
        assert!((number as u64) as f64 == number, "{number} is not a whole number");
        number as u64
    };
    assert!((tokens as i64) as f64 == tokens, "{tokens} is not a whole number");
    let capacity = Tokens::new(whole(capacity)).unwrap();
    let refill = MicroTokensPerSecond::new(whole(rate)).unwrap();
    Level {
        tokens: NanoTokens(tokens as i64),
        at_ms: whole(at_ms),
        admitted: whole(admitted),
        denied: whole(denied),
        limits: Limits::new(capacity, refill),
    }
}
