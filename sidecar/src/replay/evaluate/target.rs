//! The policies whose worth is asked for, as distributions over what the log's policy did.
//!
//! A policy that always does one thing has no density. Against a log of arms it takes the arm whose
//! change is nearest; against a log of changes its one change is widened by a kernel (Kallus & Zhou,
//! 2018, equation 3; Epanechnikov's), which trades a little bias for an estimate at all.

use std::{borrow::Cow, str::FromStr};

use super::{EvaluateError, model::Moments};
use crate::decisions::{ARMS_MAX, Choice, Decided};

/// A policy to be judged by a log.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The base law alone: a change of 0.
    Base,
    /// Every arm alike.
    Uniform,
    /// One arm always, from 0.
    Arm(u16),
    /// One change always.
    Change(f64),
    /// With recorded ratings, as the policy of this name does over them; else as the rows' `others`
    /// tell of this name.
    Named(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.split_once('=')) {
            ("base", _) => Ok(Self::Base),
            ("uniform", _) => Ok(Self::Uniform),
            (_, Some(("arm", arm))) => match arm.parse() {
                Ok(arm) if usize::from(arm) < ARMS_MAX => Ok(Self::Arm(arm)),
                _ => Err(format!("arm={arm}: write a number from 0 to {}", ARMS_MAX - 1)),
            },
            (_, Some(("change", change))) => match change.parse::<f64>() {
                Ok(change) if change.is_finite() => Ok(Self::Change(change)),
                _ => Err(format!("change={change}: write a finite number, like change=-0.1")),
            },
            _ => Ok(Self::Named(text.to_owned())),
        }
    }
}

/// What the actions of a log are.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Actions {
    /// One of several; the change of each, as far as it was taken.
    Arms(Vec<Option<f64>>),
    /// Any change; this wide is the kernel around a policy's one change.
    Changes {
        /// Half the kernel's support.
        bandwidth: f64,
    },
}

/// What a policy makes of one logged decision.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Judged {
    /// π(a|x), probability or density, of what was done.
    pub(super) likelihood: f64,
    /// What it would have done.
    pub(super) choice: Spread,
}

/// A distribution over actions.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Spread {
    Arms(Vec<f64>),
    Change { mean: f64, square: f64 },
}

impl Spread {
    pub(super) fn moments(&self) -> Moments<'_> {
        match self {
            Self::Arms(arms) => Moments::Arms(arms),
            Self::Change { mean, square } => Moments::Change(*mean, *square),
        }
    }
}

impl Target {
    /// Returns what this policy would have done where `row` was; `folded` is the change that a
    /// policy run over recorded ratings asks for there.
    pub(super) fn choice<'r>(
        &self,
        row: &'r Decided,
        actions: &Actions,
        folded: Option<f64>,
    ) -> Option<Cow<'r, Choice>> {
        let one_of = |probability: &dyn Fn(usize) -> f64, arms: usize| {
            Cow::Owned(Choice::Arms((0..arms).map(probability).collect()))
        };
        match (self, actions) {
            (Self::Base, _) => Some(Cow::Owned(Choice::Change(0.0))),
            (Self::Change(change), _) => Some(Cow::Owned(Choice::Change(*change))),
            #[allow(clippy::cast_precision_loss, reason = "at most 64 arms")]
            (Self::Uniform, Actions::Arms(arms)) => {
                Some(one_of(&|_| 1.0 / arms.len() as f64, arms.len()))
            }
            (Self::Arm(arm), Actions::Arms(arms)) if usize::from(*arm) < arms.len() => {
                let taken = |at| if at == usize::from(*arm) { 1.0 } else { 0.0 };
                Some(one_of(&taken, arms.len()))
            }
            (Self::Uniform | Self::Arm(_), _) => None,
            (Self::Named(_), _) if folded.is_some() => {
                folded.map(|change| Cow::Owned(Choice::Change(change)))
            }
            (Self::Named(name), _) => row.others.get(name).map(Cow::Borrowed),
        }
    }
}

impl Actions {
    /// Returns how likely `choice` makes what `row` did.
    pub(super) fn judge(&self, row: &Decided, choice: &Choice) -> Result<Judged, EvaluateError> {
        let mismatch = |wanted| Err(EvaluateError::Mismatch { wanted });
        match (self, choice) {
            (Self::Arms(arms), Choice::Arms(probabilities)) => {
                if probabilities.len() != arms.len() {
                    return mismatch("as many arms as the log has");
                }
                Ok(self.arms(row, probabilities.clone()))
            }
            (Self::Arms(arms), Choice::Change(change)) => {
                let known = arms.iter().enumerate().filter_map(|(arm, at)| Some((arm, (*at)?)));
                let nearest = known
                    .min_by(|(_, a), (_, b)| (a - change).abs().total_cmp(&(b - change).abs()));
                let nearest = nearest.map(|(arm, _)| arm);
                let taken = |arm| if Some(arm) == nearest { 1.0 } else { 0.0 };
                Ok(self.arms(row, (0..arms.len()).map(taken).collect()))
            }
            (Self::Arms(_), Choice::Normal { .. }) => mismatch("arms"),
            (Self::Changes { .. }, Choice::Arms(_)) => mismatch("changes"),
            (Self::Changes { .. }, Choice::Normal { mean, std }) => {
                let z = (row.action.change - mean) / std;
                let likelihood = (-0.5 * z * z).exp() / (std * std::f64::consts::TAU.sqrt());
                let square = mean * mean + std * std;
                Ok(Judged { likelihood, choice: Spread::Change { mean: *mean, square } })
            }
            (Self::Changes { bandwidth }, Choice::Change(change)) => {
                // Epanechnikov's kernel, 3/4·(1 − u²) on [−1, 1]: its variance is 1/5.
                let u = (row.action.change - change) / bandwidth;
                let likelihood = 0.75 * (1.0 - u * u).max(0.0) / bandwidth;
                let square = change * change + bandwidth * bandwidth / 5.0;
                Ok(Judged { likelihood, choice: Spread::Change { mean: *change, square } })
            }
        }
    }

    fn arms(&self, row: &Decided, probabilities: Vec<f64>) -> Judged {
        let arm = row.action.arm.expect("every row of a log of arms has one");
        let likelihood = probabilities[usize::from(arm.arm)];
        Judged { likelihood, choice: Spread::Arms(probabilities) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decisions::{Action, tests::row};

    #[test]
    fn policies_that_need_no_log_are_read_from_their_names() {
        for (text, target) in [
            ("base", Target::Base),
            ("uniform", Target::Uniform),
            ("arm=3", Target::Arm(3)),
            ("change=-0.1", Target::Change(-0.1)),
            ("additive:alpha=1", Target::Named("additive:alpha=1".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(target));
        }
        for text in ["arm=64", "arm=-1", "change=NaN", "change=x"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_policy_of_one_change_takes_the_nearest_arm_that_was_tried() {
        let actions = Actions::Arms(vec![Some(-0.2), Some(0.0), None, Some(0.25)]);
        for (change, arm) in [(-9.0, 0), (-0.05, 1), (0.2, 3)] {
            let Spread::Arms(taken) =
                actions.judge(&row(), &Choice::Change(change)).unwrap().choice
            else {
                panic!("arms")
            };
            assert_eq!(taken.iter().position(|&share| share == 1.0), Some(arm), "{change}");
        }
    }

    #[test]
    fn densities_integrate_to_one_and_have_the_moments_that_they_tell() {
        let actions = Actions::Changes { bandwidth: 0.08 };
        for choice in [Choice::Change(0.1), Choice::Normal { mean: -0.05, std: 0.07 }] {
            let (mut mass, mut first, mut second) = (0.0, 0.0, 0.0);
            let step = 1e-4;
            let mut told = Spread::Change { mean: 0.0, square: 0.0 };
            for at in -10_000..10_000 {
                let change = f64::from(at) * step;
                let judged = actions
                    .judge(&Decided { action: Action { change, arm: None }, ..row() }, &choice)
                    .unwrap();
                mass += judged.likelihood * step;
                first += judged.likelihood * change * step;
                second += judged.likelihood * change * change * step;
                told = judged.choice;
            }
            let Spread::Change { mean, square } = told else { panic!("changes") };
            assert!((mass - 1.0).abs() < 1e-4, "{mass}");
            assert!((first - mean).abs() < 1e-4 && (second - square).abs() < 1e-4);
        }
    }
}
