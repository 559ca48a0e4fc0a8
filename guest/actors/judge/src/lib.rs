//! Answers a yes/no question with `{"answer":"yes","p_yes":0.8700}`, sampling by itself from the raw logits.
//!
//! The host writes the logits of the first position of the reply straight into this module's memory; here all tokens but those that
//! say yes or no are ruled out (`verdict`). The prompt up to the question is prefilled once in a base session that every question
//! forks, so that a question costs its own tokens only.
//!
//! Settings: "system" (read once) instead of the own prompt; "temperature" (0: the likelier answer; else by chance).
#![cfg_attr(target_family = "wasm", no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod verdict;

use alloc::{string::String, vec::Vec};

use driftwood_guest::{
    Error, Message, Model, Result, Session, SessionOptions, State, Token, actor, common_prefix, json::Object, random_u64, reply, setting_or,
};
use verdict::{Choice, Verdict};

const SYSTEM: &str = "You are a judge. Answer every question with yes or no, and with nothing else.";

/// How a model may begin to say it. Those count that are one token of the model's.
const YES: [&str; 5] = ["Yes", "yes", "YES", " Yes", " yes"];
const NO: [&str; 5] = ["No", "no", "NO", " No", " no"];

actor!(judge, model_changed = model_changed);

static BENCH: State<Option<Bench>> = State::new();

/// What lasts from question to question.
struct Bench {
    system: String,
    /// Holds the prompt up to where questions begin to differ.
    base: Session,
    choices: Vec<Choice>,
    vocabulary: usize,
}

fn judge(question: &str) -> Result<()> {
    BENCH.with(|bench| {
        if bench.is_none() {
            *bench = Some(Bench::open()?);
        }
        let Some(bench) = bench else { return Ok(()) };
        let verdict = bench.judge(question)?;
        let chance = (random_u64()? >> 11) as f64 / (1u64 << 53) as f64;
        let answer = if verdict.is_yes(setting_or("temperature", 0.0)?, chance) { "yes" } else { "no" };
        reply(&Object::new().text("answer", answer).decimal("p_yes", verdict.p_yes(), 4).finish())
    })
}

/// The next question opens a bench on the new model.
fn model_changed() -> Result<()> {
    BENCH.with(|bench| *bench = None);
    Ok(())
}

impl Bench {
    fn open() -> Result<Bench> {
        let model = Model::default();
        let system = setting_or("system", String::from(SYSTEM))?;
        let (one, other) = (prompt(&model, &system, "A")?, prompt(&model, &system, "B")?);
        let base = Session::open(&model, SessionOptions::default())?;
        base.prefill(&one[..common_prefix(&one, &other)])?;
        let vocabulary = model.info()?.vocabulary as usize;
        Ok(Bench { system, base, choices: choices(&model)?, vocabulary })
    }

    fn judge(&self, question: &str) -> Result<Verdict> {
        let session = self.base.fork()?;
        session.set_tokens(&prompt(self.base.model(), &self.system, question)?)?;
        let mut logits = alloc::vec![0.0; self.vocabulary];
        session.decode(&mut logits)?;
        let verdict = Verdict::new(&self.choices, &logits);
        // Zero pages are not in a snapshot: leave none behind in memory that is free.
        logits.fill(0.0);
        core::hint::black_box(&mut logits);
        session.close()?;
        Ok(verdict)
    }
}

/// The tokens up to where the answer begins.
fn prompt(model: &Model, system: &str, question: &str) -> Result<Vec<Token>> {
    model.tokenize_rendered(&model.render(&[Message::system(system), Message::user(question)], true)?)
}

/// The tokens that say yes or no.
fn choices(model: &Model) -> Result<Vec<Choice>> {
    let mut choices: Vec<Choice> = Vec::new();
    for (word, yes) in YES.into_iter().map(|word| (word, true)).chain(NO.into_iter().map(|word| (word, false))) {
        if let [token] = model.tokenize(word)?[..]
            && choices.iter().all(|choice| choice.token != token)
        {
            choices.push(Choice { token, yes });
        }
    }
    if choices.iter().any(|choice| choice.yes) && choices.iter().any(|choice| !choice.yes) {
        return Ok(choices);
    }
    Err(Error::Failed("this model has no tokens for yes and no; take another one".into()))
}
