//! Personalised ratings: what each user would give each item, learned rating by rating.
//!
//! [`model`] is the arithmetic, pure and seeded; [`prequential`] measures it as it learns.

mod config;

pub mod model;

pub mod prequential;

pub use config::Config;
