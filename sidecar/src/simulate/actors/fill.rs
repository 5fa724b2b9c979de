//! Filling capacity by score: the best first, everybody's floor before that.

use crate::simulate::{RATE_MAX, RATE_MIN};

/// Moves for each agent that sorting by insertion may take.
const MOVES_MAX: usize = 16;

/// A fill that remembers its last order, from which the next one differs little.
#[derive(Clone, Debug)]
pub(super) struct Fill {
    order: Vec<u32>,
}

impl Fill {
    pub(super) fn new(agents: usize) -> Self {
        let agents = u32::try_from(agents).expect("there are fewer agents than 2^32");
        Self { order: (0..agents).collect() }
    }

    /// Returns agents by score, the highest first.
    fn sorted(&mut self, score: &[f64]) -> &[u32] {
        // Insertion: linear where the last order nearly holds, and given up where it does not.
        let mut moves = MOVES_MAX * self.order.len();
        for at in 1..self.order.len() {
            let agent = self.order[at];
            let mut to = at;
            while to > 0 && score[self.order[to - 1] as usize] < score[agent as usize] {
                self.order[to] = self.order[to - 1];
                to -= 1;
            }
            self.order[to] = agent;
            moves = moves.saturating_sub(at - to);
            if moves == 0 {
                let by = |agent: &u32| score[*agent as usize];
                self.order.sort_by(|a, b| by(b).total_cmp(&by(a)));
                break;
            }
        }
        &self.order
    }

    /// Writes rates: the floor for everybody, then by score (those above 0) what each asks for, with
    /// `gain` to spare, until `capacity` is used up.
    pub(super) fn rates(
        &mut self,
        score: &[f64],
        demand: &[f64],
        capacity: f64,
        gain: f64,
        rates: &mut [f64],
    ) {
        rates.fill(RATE_MIN);
        let mut left = capacity - demand.iter().map(|demand| demand.min(RATE_MIN)).sum::<f64>();
        for &agent in self.sorted(score) {
            let agent = agent as usize;
            if score[agent] <= 0.0 {
                break;
            }
            let wanted = (demand[agent] - RATE_MIN).clamp(0.0, RATE_MAX - RATE_MIN);
            let share = (left / wanted.max(1e-9)).clamp(0.0, 1.0);
            rates[agent] = (RATE_MIN + share * wanted * gain).clamp(RATE_MIN, RATE_MAX);
            left -= wanted;
        }
    }

    /// Writes admissions of `arrivals`: the floor for everybody, then by score (those above 0) up to
    /// the largest rate, until `capacity` is used up.
    pub(super) fn admissions(
        &mut self,
        score: &[f64],
        arrivals: &[f64],
        capacity: f64,
        admitted: &mut [f64],
    ) {
        let mut left = capacity;
        for (admitted, arrivals) in admitted.iter_mut().zip(arrivals) {
            *admitted = arrivals.min(RATE_MIN);
            left -= *admitted;
        }
        for &agent in self.sorted(score) {
            let agent = agent as usize;
            if score[agent] <= 0.0 {
                break;
            }
            let wanted = arrivals[agent].min(RATE_MAX) - admitted[agent];
            admitted[agent] += left.clamp(0.0, wanted);
            left -= wanted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_served_first_and_the_worst_gets_the_floor() {
        let mut fill = Fill::new(4);
        let mut rates = [0.0; 4];
        // 10 of capacity, 2 of it floors: 4.5 for the best, 3.5 of the second's 4.5.
        fill.rates(&[0.1, 1.0, 0.5, -1.0], &[5.0; 4], 10.0, 1.0, &mut rates);
        assert_eq!(rates, [0.5, 5.0, 4.0, 0.5]);
        // Another order, from the last one.
        fill.rates(&[2.0, -1.0, 0.5, 1.0], &[5.0; 4], 10.0, 1.0, &mut rates);
        assert_eq!(rates, [5.0, 0.5, 0.5, 4.0]);
    }

    #[test]
    fn any_new_order_is_found() {
        let mut fill = Fill::new(500);
        let scores = |salt: u32| -> Vec<f64> {
            (0..500u32).map(|n| f64::from(n.wrapping_mul(salt) % 509)).collect()
        };
        for salt in [1, 508, 77, 211, 212] {
            let score = scores(salt);
            let order = fill.sorted(&score).to_vec();
            assert!(order.is_sorted_by(|a, b| score[*a as usize] >= score[*b as usize]));
            let mut agents = order;
            agents.sort_unstable();
            assert!(agents.iter().enumerate().all(|(n, agent)| n == *agent as usize));
        }
    }

    #[test]
    fn admissions_use_capacity_up_and_never_exceed_it() {
        let mut fill = Fill::new(3);
        let mut admitted = [0.0; 3];
        fill.admissions(&[1.0, 0.5, -0.5], &[8.0, 8.0, 8.0], 10.0, &mut admitted);
        assert_eq!(admitted, [8.0, 1.5, 0.5]);
    }
}
