//! Free loopback ports, taken from below the range that outgoing connections use.
//!
//! A port from `bind(0)` would come from that range, and a busy test could lose it to one of its
//! own connections between asking and listening.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::atomic::{AtomicU32, Ordering},
};

const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;

/// Returns a loopback port that nobody listens on.
#[must_use]
pub fn free() -> u16 {
    free_run(1)
}

/// Returns the first of `length` consecutive loopback ports that nobody listens on.
///
/// # Panics
///
/// When there is no such run of ports.
#[must_use]
pub fn free_run(length: u16) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test binaries that run at the same time begin at places far apart.
    let start = std::process::id().wrapping_mul(613) % COUNT;
    for _ in 0..COUNT {
        let offset = NEXT.fetch_add(u32::from(length), Ordering::Relaxed);
        let first = FIRST + (start + offset) % COUNT;
        let run: Vec<u16> =
            (0..length).filter_map(|n| u16::try_from(first + u32::from(n)).ok()).collect();
        let held: Vec<_> = run
            .iter()
            .map_while(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
            .collect();
        if held.len() == usize::from(length) {
            return run[0];
        }
    }
    panic!("no {length} free loopback ports in a row from {FIRST}");
}
