//! Merit's control plane: takes ratings in, learns each agent's limits, writes them where
//! `tower-merit` spends them.

mod causes;
pub mod clock;

pub mod rating;

pub mod ingest;

pub mod bus;

pub mod policy;

pub mod checkpoint;

pub mod tuner;

pub mod decisions;

pub mod personalize;

pub mod replay;

pub mod gateway;

pub mod rls;

pub mod openapi;

pub mod admin;

pub mod operator;

pub mod simulate;

mod figure;
#[cfg(feature = "grpc")]
mod grpc_health;
mod outbound;
mod quota;
mod shares;

pub mod config;
pub mod secret;
pub mod telemetry;
pub mod trace;

pub mod app;
pub mod cli;
