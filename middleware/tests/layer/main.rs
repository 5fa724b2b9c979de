//! The admission layer over an identity that believes what it is told: charges, refusals, places.

#![allow(clippy::unwrap_used)]

mod support;

mod routes;

mod shadow;

mod refusals;

mod concurrency;

mod reservation;

mod swap;

mod own_store;
