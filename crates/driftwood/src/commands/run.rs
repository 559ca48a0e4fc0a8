//! `driftwood run`: one message to an actor that lives no longer than that.

use crate::actors::{self, Cast};
use crate::cli::Globals;
use crate::interrupt::Replying;
use crate::{catalogue, output};
use anyhow::Result;
use clap::Args;
use driftwood_actor::{Host, Message};
use serde_json::json;

const EXAMPLES: &str = "\
Examples:
  driftwood run judge \"Is the sea salty?\"
  driftwood run matmul \"128 128 128\" --device gpu
  driftwood run my_actor.wasm \"Hello!\" --set max_tokens=40";

/// Flags of `run`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    /// A Wasm module, or a guest in this program: chat, echo, judge, matmul
    guest: String,
    /// The message
    #[arg(default_value = "")]
    message: String,
    /// A name that `driftwood models` lists, or the path of a GGUF file or a Hugging Face folder
    #[arg(long, default_value = catalogue::DEFAULT)]
    model: String,
    /// A setting for the guest, such as temperature=0 (may be given several times)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Print one JSON object when the reply is whole
    #[arg(long)]
    json: bool,
}

/// Name of the one actor in this host.
const NAME: &str = "run";

/// Runs the guest.
///
/// # Errors
/// If the guest is refused or the message failed.
pub fn run(globals: &Globals, args: &RunArgs) -> Result<()> {
    let settings = actors::settings(globals, &args.settings)?;
    let mut host = actors::host(globals)?;
    host.spawn(actors::spec(Cast { name: NAME, guest: &args.guest, model: &args.model, settings })?)?;
    let replying = Replying::watch(host.interrupt_handle())?;
    let outcome = replying.run(|| actors::send(&mut host, Message::new(NAME, args.message.as_bytes()), args.json))?;
    report_copies(&host)?;
    if args.json {
        return output::json(&json!({
            "reply": String::from_utf8_lossy(&outcome.reply),
            "tokens": outcome.tokens,
            "prefilled_tokens": outcome.prefilled_tokens,
            "fuel_used": outcome.fuel_used,
            "timings": actors::timings(&outcome, 0.0, 0.0),
        }));
    }
    if outcome.reply.ends_with(b"\n") || outcome.reply.is_empty() { Ok(()) } else { output::line("") }
}

/// A product that a GPU was there for but did not compute in the guest's memory is never silent.
fn report_copies(host: &Host) -> Result<()> {
    let report = host.compute_report(NAME)?;
    if let Some(why) = report.why {
        let (copied, processor) = (report.copied, report.processor);
        output::remark(&format!("{copied} matrix products were copied to the GPU and back, {processor} computed on the processor: {why}"));
    }
    Ok(())
}
