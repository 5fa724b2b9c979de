//! Generalized advantage estimation: how much better a step was than expected.
//!
//! δ_t = r_t + γ·V(s_{t+1}) − v_t and Â_t = δ_t + γλ·Â_{t+1} (Schulman et al. 2015, "High-Dimensional
//! Continuous Control Using Generalized Advantage Estimation", equations 11 and 16). A terminated
//! episode is worth nothing afterwards; one that was only cut off is worth what the critic says of
//! the observation it would have gone on from (Pardo et al. 2018). Neither sum crosses an end.

use super::Real;

/// What came after a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End<R = f32> {
    /// The next step of the same episode.
    Continues,
    /// Nothing: the episode is over and nothing more can be earned in it.
    Terminated,
    /// Something that was not recorded, worth this much.
    Truncated(R),
}

/// What advantages are estimated with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Horizon {
    /// γ: what a reward one step later is worth, 0 to 1.
    pub discount: f64,
    /// λ: between one step of reward with the critic's word for the rest (0) and rewards alone (1).
    pub lambda: f64,
}

/// Returns the advantage of each step of one trajectory, in order.
///
/// `after` is the critic's value of what follows the last step, used when that step
/// [continues](End::Continues). The value targets are the advantages plus `values`.
///
/// # Panics
///
/// When the three slices differ in length.
pub fn advantages<R: Real>(
    rewards: &[R],
    values: &[R],
    ends: &[End<R>],
    after: R,
    horizon: Horizon,
) -> Vec<R> {
    let steps = rewards.len();
    assert!(values.len() == steps && ends.len() == steps, "a step has all three");
    let (discount, decay) = (R::of(horizon.discount), R::of(horizon.discount * horizon.lambda));
    let mut advantages = vec![R::zero(); steps];
    let (mut next_value, mut next_advantage) = (after, R::zero());
    for t in (0..steps).rev() {
        let (worth, carried) = match ends[t] {
            End::Continues => (next_value, next_advantage),
            End::Terminated => (R::zero(), R::zero()),
            End::Truncated(bootstrap) => (bootstrap, R::zero()),
        };
        let surprise = rewards[t] + discount * worth - values[t];
        advantages[t] = surprise + decay * carried;
        (next_value, next_advantage) = (values[t], advantages[t]);
    }
    advantages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Reference {
        r: Vec<f64>,
        v: Vec<f64>,
        term: Vec<f64>,
        trunc: Vec<f64>,
        vboot: Vec<f64>,
        adv: Vec<f64>,
        ret: Vec<f64>,
    }

    /// `gae_ref.py` made it, from the recursion and from the sum it stands for.
    fn reference() -> Reference {
        serde_json::from_str(include_str!("../../../tests/data/gae_ref.json")).unwrap()
    }

    fn ends(reference: &Reference) -> Vec<End<f64>> {
        let flags = reference.term.iter().zip(&reference.trunc).zip(&reference.vboot);
        flags
            .map(|((&terminated, &truncated), &bootstrap)| match (terminated, truncated) {
                (1.0, _) => End::Terminated,
                (_, 1.0) => End::Truncated(bootstrap),
                _ => End::Continues,
            })
            .collect()
    }

    #[test]
    fn advantages_and_returns_are_those_of_the_reference() {
        let reference = reference();
        let ends = ends(&reference);
        assert!(ends.contains(&End::Terminated));
        assert!(ends.iter().any(|end| matches!(end, End::Truncated(_))));
        let (values, after) = reference.v.split_at(reference.r.len());
        let horizon = Horizon { discount: 0.99, lambda: 0.95 };
        let found = advantages(&reference.r, values, &ends, after[0], horizon);
        assert_eq!(found.len(), 16);
        for t in 0..found.len() {
            assert!((found[t] - reference.adv[t]).abs() < 1e-12, "step {t}");
            assert!((found[t] + values[t] - reference.ret[t]).abs() < 1e-12, "step {t}");
        }
    }

    #[test]
    fn single_precision_agrees_to_six_digits() {
        let reference = reference();
        let narrow = |numbers: &[f64]| numbers.iter().map(|&x| f32::of(x)).collect::<Vec<f32>>();
        let ends: Vec<End> = ends(&reference)
            .into_iter()
            .map(|end| match end {
                End::Continues => End::Continues,
                End::Terminated => End::Terminated,
                End::Truncated(bootstrap) => End::Truncated(f32::of(bootstrap)),
            })
            .collect();
        let (rewards, values) = (narrow(&reference.r), narrow(&reference.v));
        let horizon = Horizon { discount: 0.99, lambda: 0.95 };
        let found = advantages(&rewards, &values[..16], &ends, values[16], horizon);
        for (found, expected) in found.iter().zip(&reference.adv) {
            assert!((found.wide() - expected).abs() < 1e-5, "{found} for {expected}");
        }
    }

    #[test]
    fn with_lambda_one_the_advantage_is_the_discounted_return_less_the_value() {
        let (rewards, values) = ([1.0, 2.0, 4.0], [0.5, 0.25, 0.125]);
        let ends = [End::Continues, End::Continues, End::Continues];
        let horizon = Horizon { discount: 0.5, lambda: 1.0 };
        let found = advantages::<f64>(&rewards, &values, &ends, 8.0, horizon);
        let returns = [1.0 + 1.0 + 1.0 + 1.0, 2.0 + 2.0 + 2.0, 4.0 + 4.0];
        for t in 0..3 {
            assert!((found[t] - (returns[t] - values[t])).abs() < 1e-15);
        }
    }
}
