//! Server-Sent Events: each viewer's score of an item, milliseconds after somebody rated it.
//!
//! 1. Events are unnamed; `data` is one line, `{"item_id":…,"rating":…}`, the viewer's score when it is sent.
//! 2. An event's id says how far each partition of the bus was read, so any node can go on where another
//!    one ended: it sends what lies behind, once (`id`).
//! 3. All connections read one bounded `ring` by a cursor of their own; nothing is copied or kept for
//!    them. Whoever falls too far behind is told the newest of each item only: nobody waits for anybody.
//! 4. The viewer is a token's `sub`, or whom one of the [`Tickets`] was issued to; the stream ends when
//!    the token does.

mod config;

mod cursor;

mod id;

mod ring;

mod routes;

mod stream;

mod tickets;

pub use config::Config;
pub use id::EventId;
pub use ring::Rated;
pub(super) use ring::Ring;
pub use tickets::{TICKET_LIFE, TicketError, Tickets};
