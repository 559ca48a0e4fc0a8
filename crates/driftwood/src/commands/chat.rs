//! `driftwood chat`: a conversation in a terminal, kept after each turn.
//!
//! On a terminal lines are edited and remembered; from a pipe each line is a message, and only replies go to stdout.

use crate::actors::{self, Cast, Stage};
use crate::cli::Globals;
use crate::commands::swap;
use crate::failure::{message, mistake};
use crate::interrupt::Replying;
use crate::models::ModelsFolder;
use crate::{catalogue, fetch, output, paths};
use anyhow::{Context, Result};
use clap::Args;
use driftwood_actor::{ActorFolder, Message, ThawOptions};
use driftwood_snapshot::Existing;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{BufRead, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  driftwood chat
  driftwood chat sailor --system \"You are a terse sailor.\" --temperature 0.3
  driftwood chat --model gemma3-270m gemma
  driftwood chat --model smollm2-135m gemma   (goes on with another model)
  echo \"Hello!\" | driftwood chat

In the conversation: /model [NAME], /freeze [FILE], /fork NAME, /stats, /help, /quit. Ctrl-C ends a reply and keeps what was said; at the prompt it quits.";

const HELP: &str = "\
/model [NAME]   which model this is; with a name, go on with that one
/freeze [FILE]  write the conversation to a file
/fork NAME      copy it to another actor
/stats          tokens, KV and memory
/help           this
/quit           leave (so do Ctrl-C and Ctrl-D); `driftwood chat` goes on here";

/// Flags of `chat`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ChatArgs {
    /// The actor to talk to; made if it is not there
    #[arg(default_value = "default")]
    name: String,
    /// A name that `driftwood models` lists, or the path of a GGUF file or a Hugging Face folder [default: the conversation's own, for a new one
    /// smollm2-135m]
    #[arg(long)]
    model: Option<String>,
    /// A Wasm module, or a guest in this program, for a new actor [default: chat]
    #[arg(long)]
    guest: Option<String>,
    /// The system prompt of a new conversation
    #[arg(long)]
    system: Option<String>,
    /// 0 takes the likeliest token, 1 samples from the model's own distribution
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Where the random numbers start
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// The most tokens of a reply
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// Sample from the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Sample from the K likeliest tokens only
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
}

/// Talks.
///
/// # Errors
/// If the actor cannot be made or woken, or the conversation cannot be kept.
pub fn run(globals: &Globals, args: &ChatArgs) -> Result<()> {
    let mut stage = Stage::open(globals)?;
    let folder = enter(globals, args, &mut stage)?;
    let replying = Replying::watch(stage.host.interrupt_handle())?;
    let on_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mut chat = Chat { stage, folder, replying, name: args.name.clone(), on_terminal, failed: false };
    if on_terminal {
        output::remark("/help lists what else you can do here; Ctrl-D leaves");
        chat.serve_terminal(&paths::state_folder(globals.state.as_deref())?.join("history"))
    } else {
        chat.serve_pipe()
    }
}

/// Makes or wakes the actor.
fn enter(globals: &Globals, args: &ChatArgs, stage: &mut Stage) -> Result<ActorFolder> {
    driftwood_actor::valid_name(&args.name)?;
    if stage.state.list()?.iter().any(|actor| actor.name == args.name) {
        return resume(args, stage);
    }
    let (guest, model) = actors::defaults(args.guest.as_ref(), args.model.as_ref());
    if let Some(entry) = catalogue::find(&model) {
        fetch::fetch(entry, &ModelsFolder::of_environment()?)?;
    }
    let mut settings = actors::settings(globals, &[])?;
    settings.extend(sampling(args));
    settings.extend(args.system.clone().map(|text| ("system".to_owned(), text)));
    stage.spawn(Cast { name: &args.name, guest: &guest, model: &model, settings })
}

fn resume(args: &ChatArgs, stage: &mut Stage) -> Result<ActorFolder> {
    if args.guest.is_some() || args.system.is_some() {
        return Err(mistake(format!(
            "`{}` is a conversation already, whose --guest and --system were decided when it began; leave them out, or choose another name",
            args.name
        )));
    }
    let options = ThawOptions { settings: sampling(args), ..ThawOptions::default() };
    let (folder, report) = match &args.model {
        Some(model) => swap::wake(stage, &args.name, model, options)?,
        None => stage.wake(&args.name, options)?,
    };
    output::remark(&actors::thawed("resumed", &args.name, &report));
    if let Some(model) = &args.model {
        let report = swap::swap(&mut stage.host, &args.name, model, false)?;
        if report.from != report.to {
            folder.save(&mut stage.host)?;
            output::remark(&swap::said(&args.name, &report));
        }
    }
    Ok(folder)
}

/// Settings that flags give.
fn sampling(args: &ChatArgs) -> BTreeMap<String, String> {
    let pairs = [
        ("temperature", args.temperature.map(|v| v.to_string())),
        ("seed", args.seed.map(|v| v.to_string())),
        ("max_tokens", args.max_tokens.map(|v| v.to_string())),
        ("top_p", args.top_p.map(|v| v.to_string())),
        ("top_k", args.top_k.map(|v| v.to_string())),
    ];
    pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Nothing,
    Say(&'a str),
    Model(Option<&'a str>),
    Freeze(Option<&'a str>),
    Fork(&'a str),
    Stats,
    Help,
    Quit,
    Unknown(&'a str),
}

fn parse(line: &str) -> Line<'_> {
    let line = line.trim();
    if line.is_empty() {
        return Line::Nothing;
    }
    let (command, argument) = line.split_once(char::is_whitespace).map_or((line, ""), |(c, a)| (c, a.trim()));
    match (command, argument) {
        ("/model", "") => Line::Model(None),
        ("/model", name) => Line::Model(Some(name)),
        ("/freeze", "") => Line::Freeze(None),
        ("/freeze", file) => Line::Freeze(Some(file)),
        ("/fork", name) if !name.is_empty() => Line::Fork(name),
        ("/stats", "") => Line::Stats,
        ("/help", "") => Line::Help,
        ("/quit" | "/exit", "") => Line::Quit,
        (command, _) if command.starts_with('/') => Line::Unknown(command),
        _ => Line::Say(line),
    }
}

struct Chat {
    stage: Stage,
    folder: ActorFolder,
    replying: Replying,
    name: String,
    on_terminal: bool,
    failed: bool,
}

impl Chat {
    fn serve_terminal(&mut self, history: &Path) -> Result<()> {
        let mut editor = DefaultEditor::new().context("cannot edit lines on this terminal")?;
        // The history holds what was said: only for its owner. It is a convenience, so that failing to keep it is no error.
        let _ = OpenOptions::new().create(true).append(true).mode(0o600).open(history);
        let _ = editor.load_history(history);
        loop {
            match editor.readline("> ") {
                Ok(line) => {
                    if !line.trim().is_empty() {
                        let _ = editor.add_history_entry(&line);
                        let _ = editor.append_history(history);
                    }
                    if !self.take(&line)? {
                        return Ok(());
                    }
                }
                Err(ReadlineError::Interrupted | ReadlineError::Eof) => return Ok(()),
                Err(why) => return Err(why).context("cannot read from the terminal"),
            }
        }
    }

    fn serve_pipe(&mut self) -> Result<()> {
        for line in std::io::stdin().lock().lines() {
            if !self.take(&line.context("cannot read stdin")?)? {
                break;
            }
        }
        if self.failed { Err(anyhow::anyhow!("some messages failed; what failed stands above")) } else { Ok(()) }
    }

    /// Does what a line asks for; false to quit.
    fn take(&mut self, line: &str) -> Result<bool> {
        let done = match parse(line) {
            Line::Quit => return Ok(false),
            Line::Nothing => Ok(()),
            Line::Say(text) => return self.say(text).map(|()| true),
            Line::Model(name) => self.model(name),
            Line::Freeze(file) => self.freeze(file),
            Line::Fork(name) => self.fork(name),
            Line::Stats => self.stats(),
            Line::Help => {
                output::note(HELP);
                Ok(())
            }
            Line::Unknown(command) => Err(mistake(format!("there is no {command} with such words; /help lists what there is"))),
        };
        done.or_else(|why| self.tell(&why))?;
        Ok(true)
    }

    /// Sends a message, and keeps the actor.
    fn say(&mut self, text: &str) -> Result<()> {
        let host = &mut self.stage.host;
        let message = Message::new(self.name.clone(), text.as_bytes());
        match self.replying.run(|| actors::send(host, message, false)) {
            Ok(outcome) if outcome.reply.ends_with(b"\n") => {}
            Ok(_) => output::line("")?,
            Err(why) => return self.tell(&why),
        }
        self.folder.save(&mut self.stage.host).context("cannot keep the conversation")?;
        Ok(())
    }

    /// Says what went wrong; the conversation goes on unless nobody reads us.
    fn tell(&mut self, why: &anyhow::Error) -> Result<()> {
        if crate::failure::is_closed_output(why) {
            return Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into());
        }
        self.failed = !self.on_terminal;
        output::note(&message(why));
        Ok(())
    }

    fn freeze(&mut self, file: Option<&str>) -> Result<()> {
        let path = file.map_or_else(|| PathBuf::from(format!("{}.safetensors", self.name)), PathBuf::from);
        let report = self.stage.host.freeze(&self.name, &path, Existing::Refuse)?;
        output::remark(&format!("frozen: {} in {}", output::human_bytes(report.bytes), path.display()));
        Ok(())
    }

    /// Shows the model, or goes on with another and keeps the actor.
    fn model(&mut self, name: Option<&str>) -> Result<()> {
        let Some(name) = name else {
            let settings = self.stage.host.info(&self.name)?.settings;
            output::remark(settings.get("model").map_or("none", String::as_str));
            return Ok(());
        };
        let report = swap::swap(&mut self.stage.host, &self.name, name, false)?;
        self.folder.save(&mut self.stage.host).context("cannot keep the conversation")?;
        output::remark(&swap::said(&self.name, &report));
        Ok(())
    }

    fn fork(&mut self, name: &str) -> Result<()> {
        self.stage.fork(&self.name, name)?;
        output::remark(&format!("forked: talk to the copy with `driftwood chat {name}`"));
        Ok(())
    }

    fn stats(&mut self) -> Result<()> {
        let info = self.stage.host.info(&self.name)?;
        output::remark(&format!("{} messages, linear memory {}", info.messages_handled, output::human_bytes(info.memory_bytes as u64)));
        for s in &info.sessions {
            let kv = output::human_bytes((s.kv_own_bytes + s.kv_shared_bytes) as u64);
            output::remark(&format!("session {} on {}: {} of {} tokens, {kv} of {} KV", s.handle, s.model, s.tokens, s.context_max, s.kv));
            let r = s.residence;
            let copied = output::human_bytes(r.copied_weight_bytes as u64);
            output::remark(&format!("  weights: {} ({copied} copied); KV: {}; logits: {}", r.weights, r.kv, r.logits));
        }
        for kept in &info.kept {
            let kv = output::human_bytes(kept.kv_bytes as u64);
            output::remark(&format!("kept for {}: {} tokens, {kv} of KV", kept.model, kept.tokens));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_messages() {
        let cases = [
            ("", Line::Nothing),
            ("  hello /quit ", Line::Say("hello /quit")),
            ("/quit", Line::Quit),
            ("/model", Line::Model(None)),
            ("/model gemma3-270m", Line::Model(Some("gemma3-270m"))),
            ("/freeze", Line::Freeze(None)),
            ("/freeze my file", Line::Freeze(Some("my file"))),
            ("/fork bob", Line::Fork("bob")),
            ("/fork", Line::Unknown("/fork")),
            ("/stats", Line::Stats),
            ("/nothing here", Line::Unknown("/nothing")),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line), expected, "{line}");
        }
    }
}
