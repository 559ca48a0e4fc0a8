//! Journeys with the real binary, each command a process of its own: what a user does and what a user does wrong.
//!
//! Tests with models read them from the folder `DRIFTWOOD_MODELS`; `cargo xtask test` fetches them there.

#[cfg(target_os = "linux")]
mod faults;
mod golden;
mod gpu;
mod hub;
mod journeys;
mod kills;
mod mistakes;
mod models;
mod parks;
mod pull;
mod support;
