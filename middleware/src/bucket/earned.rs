//! Buckets that scale along with the default one: what an agent earned there counts here as well.

use super::{CAPACITY_MAX, Limits, MicroTokensPerSecond, REFILL_RATE_MAX, Tokens};

/// Returns the limits of a bucket configured at `configured`, for an agent whose default bucket
/// refills at `rate` where `start` is configured: capacity and rate times `rate / start`.
///
/// Exact, without steps in between: it depends on the three arguments only, and at `rate == start` the
/// bucket is as configured. The capacity is rounded down and the rate to the nearest micro-token per
/// second; both stay within what a bucket can be. A bucket that admits something keeps a capacity of
/// at least 1, and one that refills goes on refilling as long as `rate` is above 0. With a `start` of 0
/// there is nothing to scale by: the bucket is as configured.
#[must_use]
pub fn earned(
    configured: &Limits,
    rate: MicroTokensPerSecond,
    start: MicroTokensPerSecond,
) -> Limits {
    if start.micro() == 0 {
        return *configured;
    }
    let (rate, start) = (u128::from(rate.micro()), u128::from(start.micro()));
    // At most (9 × 10^12)^2, below 2^87.
    let within = |number: u128, least: u64, most: u64| {
        u64::try_from(number).map_or(most, |number| number.clamp(least, most))
    };
    let tokens = configured.capacity().get();
    let capacity = within(u128::from(tokens) * rate / start, tokens.min(1), CAPACITY_MAX);
    let micro = configured.refill().micro();
    let refills = u64::from(micro > 0 && rate > 0);
    let refill = (u128::from(micro) * rate + start / 2) / start;
    let refill = within(refill, refills, REFILL_RATE_MAX * 1_000_000);
    Limits::new(
        Tokens::new(capacity).expect("within bounds"),
        MicroTokensPerSecond::new(refill).expect("within bounds"),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(tokens: f64) -> MicroTokensPerSecond {
        MicroTokensPerSecond::from_tokens(tokens).unwrap()
    }

    #[test]
    fn twice_the_rate_is_twice_the_bucket_and_never_less_than_one_token() {
        let writes = Limits::per_second(2.0, 10).unwrap();
        for (earns, refill, capacity) in
            [(40.0, 4.0, 20), (20.0, 2.0, 10), (30.0, 3.0, 15), (19.0, 1.9, 9), (0.5, 0.05, 1)]
        {
            let expected = Limits::per_second(refill, capacity).unwrap();
            assert_eq!(earned(&writes, rate(earns), rate(20.0)), expected, "{earns}");
        }
        assert_eq!(earned(&writes, rate(5.0), rate(0.0)), writes);
        assert_eq!(earned(&writes, rate(0.0), rate(5.0)), Limits::per_second(0.0, 1).unwrap());
        let closed = Limits::per_second(0.0, 0).unwrap();
        assert_eq!(earned(&closed, rate(5.0), rate(1.0)), closed);
    }

    fn any_rate() -> impl Strategy<Value = MicroTokensPerSecond> {
        let most = REFILL_RATE_MAX * 1_000_000;
        prop_oneof![Just(1), 1..50_000_000u64, 0..=most, Just(most)]
            .prop_map(|micro| MicroTokensPerSecond::new(micro).unwrap())
    }

    fn any_limits() -> impl Strategy<Value = Limits> {
        let capacity = prop_oneof![0..100u64, 0..=CAPACITY_MAX];
        (capacity, any_rate())
            .prop_map(|(capacity, rate)| Limits::new(Tokens::new(capacity).unwrap(), rate))
    }

    proptest! {
        #[test]
        fn at_the_configured_rate_a_bucket_is_as_configured(bucket in any_limits(), at in any_rate()) {
            prop_assert_eq!(earned(&bucket, at, at), bucket);
        }

        #[test]
        fn who_earns_more_gets_no_less(
            bucket in any_limits(), one in any_rate(), other in any_rate(), start in any_rate(),
        ) {
            let few = earned(&bucket, one.min(other), start);
            let many = earned(&bucket, one.max(other), start);
            prop_assert!(few.capacity() <= many.capacity() && few.refill() <= many.refill());
        }

        #[test]
        fn within_bounds_the_scale_is_exact_but_for_the_rounding(
            bucket in any_limits(), at in any_rate(), start in any_rate(),
        ) {
            prop_assume!(start.micro() > 0);
            let scaled = earned(&bucket, at, start);
            let (at, start) = (u128::from(at.micro()), u128::from(start.micro()));
            let (got, configured) = (u128::from(scaled.capacity().get()), u128::from(bucket.capacity().get()));
            if (2..u128::from(CAPACITY_MAX)).contains(&got) {
                prop_assert!(got * start <= configured * at && configured * at < (got + 1) * start);
            }
            let (got, configured) = (u128::from(scaled.refill().micro()), u128::from(bucket.refill().micro()));
            if (2..u128::from(REFILL_RATE_MAX) * 1_000_000).contains(&got) {
                prop_assert!((got * start).abs_diff(configured * at) * 2 <= start);
            }
        }
    }
}
