//! Posting ratings to ingest and keeping the test's own list of what was acknowledged.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    client::{Answer, Client},
    fold::Fold,
    keys,
};

/// How many ratings [`Poster::flow`] sends in one batch.
pub const BATCH: usize = 250;

/// One rating, named so that no two are the same event.
#[derive(Clone, Debug)]
pub struct Rating {
    /// Who is rated.
    pub agent: String,
    /// Who rates.
    pub user: String,
    /// 1 to 5.
    pub score: f64,
    /// Names the event.
    pub id: String,
}

impl Rating {
    /// Returns a rating with a name of its own.
    #[must_use]
    pub fn new(agent: &str, score: f64) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            agent: agent.to_owned(),
            user: format!("user-{}", number % 97),
            score,
            id: format!("it-{}-{number}", std::process::id()),
        }
    }

    /// Returns the rating as ingest takes it.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({"agent_id": self.agent, "user_id": self.user, "score": self.score, "id": self.id})
    }
}

/// A collector that posts to one ingest, and folds what it was told is taken.
#[derive(Clone, Debug)]
pub struct Poster {
    client: Client,
    url: String,
    token: String,
    /// What the acknowledged ratings must have made of the limits.
    pub fold: Fold,
}

impl Poster {
    /// Returns a poster to the ingest at `url`.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self {
            client: Client::new(),
            url: url.to_owned(),
            token: keys::collector(),
            fold: Fold::default(),
        }
    }

    /// Posts one rating and returns the answer; 202 goes into the fold.
    ///
    /// # Errors
    ///
    /// When there was no answer.
    pub async fn try_rate(&mut self, rating: &Rating) -> anyhow::Result<Answer> {
        let url = format!("{}/v1/rating", self.url);
        let answer = self.client.post(&url, &self.token, &rating.json()).await?;
        if answer.status == StatusCode::ACCEPTED {
            self.fold.rate(&rating.agent, rating.score);
        }
        Ok(answer)
    }

    /// Posts one new rating, which must be taken.
    ///
    /// # Panics
    ///
    /// When it is not.
    pub async fn rate(&mut self, agent: &str, score: f64) {
        let rating = Rating::new(agent, score);
        let answer = self.try_rate(&rating).await.expect("ingest answers");
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
        assert_eq!(answer.json()["id"], *rating.id, "{}", answer.text());
    }

    /// Posts a batch, of which every rating must be taken.
    ///
    /// # Panics
    ///
    /// When one is not.
    pub async fn rate_all(&mut self, ratings: &[Rating]) {
        let batch = Value::Array(ratings.iter().map(Rating::json).collect());
        let url = format!("{}/v1/ratings", self.url);
        let answer = self.client.post(&url, &self.token, &batch).await.expect("ingest answers");
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
        let told = answer.json();
        let results = told["results"].as_array().expect("a batch is answered per item");
        assert_eq!(results.len(), ratings.len(), "{told}");
        for (rating, result) in ratings.iter().zip(results) {
            assert_eq!(result["status"], 202, "{result}");
            assert_eq!(result["id"], *rating.id, "{result}");
            self.fold.rate(&rating.agent, rating.score);
        }
    }

    /// Posts a batch again and again, what was not taken under the same ids, until all of it is; returns
    /// how many ratings were refused or stayed without an answer, each time counted.
    ///
    /// A rating that was refused comes behind those of its agent that were taken.
    ///
    /// # Panics
    ///
    /// When an answer is neither 202, 207, 429 nor 503.
    pub async fn rate_until_taken(&mut self, mut ratings: Vec<Rating>, pause: Duration) -> u64 {
        let url = format!("{}/v1/ratings", self.url);
        let mut refused = 0;
        while !ratings.is_empty() {
            let batch = Value::Array(ratings.iter().map(Rating::json).collect());
            let left = match self.client.post(&url, &self.token, &batch).await {
                Err(_) => ratings,
                Ok(answer) => {
                    let known = matches!(answer.status.as_u16(), 202 | 207 | 429 | 503);
                    assert!(known, "{}: {}", answer.status, answer.text());
                    let told = answer.json();
                    let results = told["results"].as_array();
                    let taken = |at: usize| results.is_some_and(|all| all[at]["status"] == 202);
                    let mut left = Vec::new();
                    for (at, rating) in ratings.into_iter().enumerate() {
                        if taken(at) {
                            self.fold.rate(&rating.agent, rating.score);
                        } else {
                            left.push(rating);
                        }
                    }
                    left
                }
            };
            refused += left.len() as u64;
            ratings = left;
            if !ratings.is_empty() {
                tokio::time::sleep(pause).await;
            }
        }
        refused
    }

    /// Rates `agents` up to the highest rate there is.
    pub async fn lift(&mut self, agents: &[String]) {
        let fives = (0..101).flat_map(|_| agents.iter().map(|agent| Rating::new(agent, 5.0)));
        for batch in fives.collect::<Vec<_>>().chunks(BATCH) {
            self.rate_all(batch).await;
        }
    }

    /// Posts `count` ratings of `agents` in batches of [`BATCH`], each answered before the next is
    /// sent, so that the order of every agent's ratings is known.
    pub async fn flow(&mut self, agents: &[String], count: usize) {
        let mut sent = 0;
        while sent < count {
            let length = BATCH.min(count - sent);
            let batch: Vec<Rating> = (sent..sent + length)
                .map(|n| Rating::new(&agents[n % agents.len()], score(n)))
                .collect();
            self.rate_all(&batch).await;
            sent += length;
        }
    }
}

/// Returns a score in [1, 5] that wanders evenly over the range, with digits to spare, so that a
/// rating folded twice, left out or out of order at a clamp shows in the sum.
#[must_use]
pub fn score(n: usize) -> f64 {
    let step = u32::try_from(n % 1_000_003).map_or(0.0, f64::from);
    1.0 + 4.0 * (step * 0.618_033_988_749_895).fract()
}
