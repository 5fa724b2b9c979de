//! A batch on its way into agents: the ratings of each, in order, and the agents in the order in which the batch
//! names them.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use tower_merit::AgentId;

use super::agents::Folding;

/// The ratings that are not written yet, by agent.
#[derive(Default)]
pub(super) struct Pending<'a> {
    agents: Vec<(AgentId, Vec<Folding<'a>>)>,
    /// Where an agent stands in `agents`, until the first of them is done: ratings come before that.
    places: HashMap<AgentId, usize, RandomState>,
}

impl<'a> Pending<'a> {
    /// Adds a rating of `agent`, behind those that were added before.
    pub(super) fn push(&mut self, agent: AgentId, folding: Folding<'a>) {
        debug_assert_eq!(self.agents.len(), self.places.len(), "nobody is done yet");
        match self.places.get(&agent) {
            Some(&place) => self.agents[place].1.push(folding),
            None => {
                self.places.insert(agent.clone(), self.agents.len());
                self.agents.push((agent, vec![folding]));
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.agents.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.agents.is_empty()
    }

    /// Returns who has ratings left.
    pub(super) fn agents(&self) -> impl Iterator<Item = &AgentId> {
        self.agents.iter().map(|(agent, _)| agent)
    }

    /// Keeps those for whom `keep` returns true; it is asked in order.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&AgentId, &mut Vec<Folding<'a>>) -> bool) {
        self.places.clear();
        self.agents.retain_mut(|(agent, ratings)| keep(agent, ratings));
    }

    /// Gives up the ratings of one agent, and returns how many those were. Rare: it looks through all.
    pub(super) fn remove(&mut self, agent: &AgentId) -> usize {
        let before = self.agents.iter().find(|(known, _)| known == agent);
        let count = before.map_or(0, |(_, ratings)| ratings.len());
        self.retain(|known, _| known != agent);
        count
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        bus::{Delivery, Partition},
        rating::{Poster, RatingRequest},
    };

    fn deliveries(agents: &[&str]) -> Vec<Delivery> {
        let delivery = |(at, agent): (usize, &&str)| {
            let body = format!(r#"{{"agent_id":"{agent}","user_id":"u","score":4,"id":"i{at}"}}"#);
            let request = RatingRequest::from_json(body.as_bytes()).unwrap();
            let rating = request.into_rating(Poster::new("p").unwrap(), 1).unwrap();
            Delivery { partition: Partition(0), offset: at as u64, rating }
        };
        agents.iter().enumerate().map(delivery).collect()
    }

    #[test]
    fn each_agent_has_its_ratings_in_order_until_it_is_done() {
        let deliveries = deliveries(&["b", "a", "b", "c", "b", "a"]);
        let mut pending = Pending::default();
        for delivery in &deliveries {
            let agent = delivery.rating.agent().unwrap().clone();
            let log = Arc::from("s/0");
            pending.push(agent, Folding { delivery, log, fresh: false, weight: None });
        }
        let mut seen = Vec::new();
        pending.retain(|agent, ratings| {
            let offsets: Vec<u64> = ratings.iter().map(|folding| folding.delivery.offset).collect();
            seen.push((agent.to_string(), offsets));
            agent.as_str() != "a"
        });
        let expected = [("b", vec![0, 2, 4]), ("a", vec![1, 5]), ("c", vec![3])];
        assert_eq!(seen, expected.map(|(agent, offsets)| (agent.to_owned(), offsets)));
        assert_eq!(pending.remove(&AgentId::new("a").unwrap()), 0);
        assert_eq!(pending.remove(&AgentId::new("b").unwrap()), 3);
        assert_eq!((pending.len(), pending.is_empty()), (1, false));
        assert_eq!(pending.agents().next().unwrap().as_str(), "c");
    }
}
