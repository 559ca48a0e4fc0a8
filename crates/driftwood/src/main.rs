//! The binary: the only crate that knows a terminal, files of the user or JSON on a wire.
//!
//! `cli.rs` is the grammar of the command line, `commands/` has one file a command, each a thin caller of `driftwood-actor` or
//! `driftwood-engine`. Beside them: where things are (`paths.rs`, `models.rs`, `catalogue.rs`, `guests.rs`) and how they
//! come here (`fetch.rs`, `repository.rs`, `hub.rs`, `wheel.rs`), what runs them
//! (`device.rs`, `actors.rs`, `decode.rs`), and how they are shown (`output.rs`, `failure.rs`, `interrupt.rs`).

#![recursion_limit = "256"] // whether a graphics device is `Send` takes the compiler that deep
#![forbid(unsafe_code)]

mod actors;
mod catalogue;
mod cli;
mod commands;
mod decode;
mod device;
mod failure;
mod fetch;
mod guests;
mod hub;
mod interrupt;
mod models;
mod output;
mod paths;
mod repository;
mod wheel;

use clap::Parser;
use cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.globals.verbose);
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if failure::is_closed_output(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("driftwood: {}", failure::message(&error)));
            ExitCode::from(failure::exit_code(&error))
        }
    }
}

/// Diagnostics go to stderr: warnings, and with -v and -vv what leads to them.
fn start_log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::new(format!("warn,driftwood={level},driftwood_actor={level},driftwood_engine={level}"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).without_time().init();
}
