//! Personalised ratings: what each user would give each item, learned rating by rating.
//!
//! 1. [`model`] is the arithmetic, pure and seeded; [`prequential`] measures it as it learns.
//! 2. Each process that answers holds the whole model and reads the whole bus ([`Node`]), beside the tuners
//!    and without holding anything back for them.
//! 3. A checkpoint holds the model together with the positions on the bus that it was learned up to: a
//!    restart goes on exactly there.
//! 4. [`events`] tells viewers their scores as they change.
//! 5. Whoever asks for a user's scores is that user, or may read any ([`READ_ANY`]).

mod config;

pub mod model;

pub mod prequential;

mod positions;

mod recent;

mod checkpoint;

mod node;

mod viewers;

mod scores;

pub mod events;

pub use checkpoint::RestoreError;
pub use config::Config;
pub use node::{Node, NodeError, Personalized};
pub use positions::Positions;
pub use viewers::{READ_ANY, Viewers};
