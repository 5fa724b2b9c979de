//! `merit replay --personalize`: how far off personalised ratings were, each before it was learned.
//!
//! What is rated is what the file names as agent: an item or an agent. Errors are on the scale of 1 to 5;
//! on another one they are wider by as much as it is.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    layout::Scale,
    rows::{Cast, Event},
};
use crate::personalize::{
    model::{Config, Key, Model},
    prequential::{Error, Errors, Prequential},
};

/// A model that learns from recorded ratings.
#[derive(Debug)]
pub(super) struct Personal {
    model: Model,
    measured: Prequential,
    /// The keys of users and agents by number: an id is hashed once.
    users: Vec<Key>,
    agents: Vec<Key>,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Over the whole log.
    pub overall: Errors,
    /// Over each tenth of it, in the order of time.
    pub tenths: Vec<Errors>,
    /// The whole log's error of the model in the units of the file, when these are not 1 to 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_file_scale: Option<Error>,
    /// Users with factors at the end.
    pub users: usize,
    /// Items with factors at the end.
    pub items: usize,
    /// Users and items that were forgotten to keep memory bounded.
    pub forgotten: u64,
}

impl Personal {
    pub(super) fn new(config: Config) -> Self {
        Self {
            model: Model::new(config),
            measured: Prequential::default(),
            users: Vec::new(),
            agents: Vec::new(),
        }
    }

    pub(super) fn learn(&mut self, event: Event, cast: &Cast) {
        let (user, agent) = (event.user as usize, event.agent as usize);
        let (users, agents) = (cast.users.all(), cast.agents.all());
        for new in &users[self.users.len().min(user + 1)..=user] {
            self.users.push(Key::user(new.as_str()));
        }
        for new in &agents[self.agents.len().min(agent + 1)..=agent] {
            self.agents.push(Key::item(new.as_str()));
        }
        let (user, agent) = (self.users[user], self.agents[agent]);
        self.measured.learn(&mut self.model, user, agent, &[], event.score);
    }

    pub(super) fn measured(self, scale: Scale) -> Measured {
        let overall = self.measured.whole();
        let by = scale.by_1_to_5();
        let Error { rmse, mae } = overall.model;
        let size = self.model.size();
        Measured {
            overall,
            tenths: self.measured.tenths(),
            on_file_scale: (scale != Scale::default())
                .then_some(Error { rmse: rmse * by, mae: mae * by }),
            users: size.users,
            items: size.items,
            forgotten: size.forgotten,
        }
    }
}

impl Measured {
    /// Appends the result for people.
    pub(super) fn describe(&self, text: &mut String) {
        let Self { users, items, forgotten, .. } = self;
        let _ = writeln!(
            text,
            "\nPersonalised ratings: error of each prediction before it was learned, on 1 to 5\n\
             {:<10} {:>10} {:>8} {:>8} {:>12} {:>12}",
            "part", "ratings", "rmse", "mae", "popularity", "global mean"
        );
        let mut row = |name: &str, part: &Errors| {
            let Errors { ratings, model, popularity, mean } = part;
            let _ = writeln!(
                text,
                "{name:<10} {ratings:>10} {:>8.4} {:>8.4} {:>12.4} {:>12.4}",
                model.rmse, model.mae, popularity.rmse, mean.rmse
            );
        };
        for (number, part) in (1..).zip(&self.tenths) {
            row(&format!("{number} of {}", self.tenths.len()), part);
        }
        row("all", &self.overall);
        if let Some(Error { rmse, mae }) = self.on_file_scale {
            let _ = writeln!(text, "on the file's own scale: rmse {rmse:.4}, mae {mae:.4}");
        }
        let _ = writeln!(text, "factors of {users} users and {items} items, {forgotten} forgotten");
    }
}
