//! How soon a policy is back after the agents changed at half-time.
//!
//! The share of the reference's utility, over a moving window, is compared with its median before the
//! change: recovered is when it is back at 95 % of that, and stays there on average for a while.

use super::World;

/// Ticks of the moving window.
const WINDOW: usize = 40;
/// Ticks before the change whose median is what there is to come back to.
const BEFORE: usize = 600;
/// The share of it that counts as back.
const BACK: f64 = 0.95;
/// Ticks over which the mean must be back too.
const STAY: usize = 60;

/// How soon a policy was back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recovery {
    /// Ticks until the end of the first window that is back.
    pub ticks: usize,
    /// Ratings given until then, over all agents.
    pub ratings: f64,
}

impl Recovery {
    /// Returns how soon it was, or `None` when nothing changed, the run is too short to tell, or the
    /// policy never came back.
    #[must_use]
    pub fn of(world: &World, utility: &[f64], reference: &[f64], ratings: &[f64]) -> Option<Self> {
        let half = world.half_time();
        let some_change = (0..world.agents()).any(|agent| world.changes(agent));
        if !some_change || half <= 2 * WINDOW {
            return None;
        }
        let (ours, theirs) = (windows(utility), windows(reference));
        let share: Vec<f64> =
            ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
        let bar = BACK * median(&share[half.saturating_sub(BEFORE)..half - WINDOW]);
        let after = &share[half..];
        let at = (0..after.len()).find(|&at| {
            let stay = &after[at..after.len().min(at + STAY)];
            after[at] >= bar && mean(stay) >= bar
        })?;
        let ticks = at + WINDOW;
        let given = &ratings[half..ratings.len().min(half + ticks)];
        Some(Self { ticks, ratings: given.iter().sum() })
    }
}

/// Returns the sums over all windows.
pub(super) fn windows(values: &[f64]) -> Vec<f64> {
    let mut sum: f64 = values.iter().take(WINDOW).sum();
    let mut sums = vec![sum];
    for pair in values.windows(WINDOW + 1) {
        sum += pair[WINDOW] - pair[0];
        sums.push(sum);
    }
    sums
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / super::world::count(values.len())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recovery(regime: &str, utility: impl Fn(usize) -> f64) -> Option<Recovery> {
        let world = World::new(regime.parse().unwrap(), 1, 20, 2000);
        let utility: Vec<f64> = (0..2000).map(utility).collect();
        Recovery::of(&world, &utility, &[1.0; 2000], &[0.5; 2000])
    }

    #[test]
    fn recovery_ends_with_the_first_window_that_is_back() {
        // Down to a half at the change, and back 100 ticks later: the window that begins 98 ticks
        // after the change has 2 ticks of 40 below, a mean of 0.975; six below is 0.925.
        let found = recovery("base", |tick| if (1000..1100).contains(&tick) { 0.5 } else { 1.0 });
        assert_eq!(found, Some(Recovery { ticks: 96 + WINDOW, ratings: 0.5 * 136.0 }));
    }

    #[test]
    fn whoever_never_falls_needs_one_window_and_whoever_stays_down_never_recovers() {
        assert_eq!(recovery("base", |_| 0.9).map(|found| found.ticks), Some(WINDOW));
        assert_eq!(recovery("base", |tick| if tick < 1000 { 1.0 } else { 0.9 }), None);
    }

    #[test]
    fn a_moment_above_the_bar_is_no_recovery() {
        let found = recovery("base", |tick| match tick {
            0..1000 | 1150..1210 | 1400.. => 1.0,
            _ => 0.6,
        });
        assert!(found.is_some_and(|found| found.ticks > 380), "{found:?}");
    }

    #[test]
    fn where_nobody_changes_there_is_nothing_to_recover_from() {
        assert_eq!(recovery("crowd", |_| 1.0), None);
    }
}
