//! The default actor: a conversation with a model, with a system prompt, a history and streamed replies.
//!
//! Its state is the transcript and one session. On each message it renders the whole transcript by the model's chat template and
//! feeds the session only what is new (`feed`). When the context is full it drops its oldest turns, prefills again and says so
//! (`fit`). How tokens are chosen comes from the settings (`sampling`). When the setting "model" names another model it opens a session
//! there and renders the transcript anew; of what it leaves behind it remembers text and tokens, for the way back (`former`).
//!
//! Settings, besides those of `sampling`: "system" and, read once, "context_max" and "kv" (f16, f32 or q8); "max_tokens" (512).
#![cfg_attr(target_family = "wasm", no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod feed;
mod fit;
mod former;
mod sampling;

use alloc::{format, string::String, vec::Vec};

use driftwood_guest::{
    Error, Finish, Generate, Generated, Kv, Level, Message, Model, Result, Session, SessionOptions, State, Token, actor, common_prefix,
    log, setting, setting_or,
};
use feed::{Fed, Feed};
use fit::Room;
use former::Formers;
use sampling::Sampling;

const MAX_TOKENS: u32 = 512;

actor!(chat, model_changed = model_changed);

static CHAT: State<Chat> = State::new();

/// A conversation. Everything here is in linear memory, the session's tokens and KV are with the host.
#[derive(Default)]
struct Chat {
    /// The system prompt as the first message found it.
    system: Option<Message>,
    /// User and assistant in turns, the user first.
    turns: Vec<Message>,
    session: Option<Session>,
    /// The name of its model.
    model: String,
    /// What text the session stands for; none if it must be compared token by token.
    fed: Option<Fed>,
    /// What the session's sampler was set from.
    sampling: Option<Sampling>,
    /// What sessions on other models stood for when they were closed.
    formers: Formers,
}

fn chat(message: &str) -> Result<()> {
    CHAT.with(|chat| {
        let turns_before = chat.turns.len();
        chat.turns.push(Message::user(message));
        let answered = chat.answer();
        if answered.is_err() {
            // As if the message had never come; of the session nothing is known, so that it is compared next time.
            chat.turns.truncate(turns_before);
            chat.fed = None;
        }
        answered
    })
}

/// Brings the conversation to another model.
fn model_changed() -> Result<()> {
    CHAT.with(Chat::change_model)
}

impl Chat {
    /// Answers the user's turn that stands last in the transcript.
    fn answer(&mut self) -> Result<()> {
        self.in_session(Chat::answer_in)
    }

    /// Has the model that the settings name read the transcript, if there is one.
    fn change_model(&mut self) -> Result<()> {
        if self.turns.is_empty() { Ok(()) } else { self.in_session(Chat::read_in) }
    }

    /// Works in the session, which is on the model that the settings name now.
    fn in_session(&mut self, work: impl FnOnce(&mut Chat, &Session) -> Result<()>) -> Result<()> {
        let model = setting_or("model", String::new())?;
        let session = match self.session.take() {
            Some(session) if self.model == model => session,
            Some(former) => self.move_to(model, &former).and_then(|()| self.open())?,
            None => {
                self.system = setting::<String>("system")?.filter(|text| !text.is_empty()).map(Message::system);
                self.model = model;
                self.open()?
            }
        };
        let worked = work(self, &session);
        self.session = Some(session);
        worked
    }

    /// Remembers what a session stood for before it is closed.
    fn move_to(&mut self, model: String, former: &Session) -> Result<()> {
        let tokens = former.tokens(0)?;
        self.formers.leave(core::mem::replace(&mut self.model, model), self.fed.take(), tokens);
        self.sampling = None;
        Ok(())
    }

    /// Opens a session. One on a model that was left before begins with what it stood for then, whose keys and values the host may have.
    fn open(&mut self) -> Result<Session> {
        let kv = match setting::<String>("kv")?.as_deref() {
            None | Some("f16") => Kv::F16,
            Some("f32") => Kv::F32,
            Some("q8") => Kv::Q8,
            Some(other) => return Err(Error::Failed(format!("the setting kv can't be \"{other}\"; say f16, f32 or q8"))),
        };
        let options = SessionOptions { kv, context_max: setting_or("context_max", 0)? };
        let session = Session::open(&Model::default(), options)?;
        if let Some((fed, tokens)) = self.formers.come_back(&self.model)
            && tokens.len() as u32 <= session.context()?
        {
            session.append(&tokens)?;
            self.fed = Some(fed);
        }
        Ok(session)
    }

    /// Evaluates the transcript, to the end of its last turn.
    fn read_in(&mut self, session: &Session) -> Result<()> {
        let rendering = self.feed(session, setting_or("max_tokens", MAX_TOKENS)?, false)?;
        session.prefill(&[])?;
        self.fed = Some(Fed { text: rendering, end: None });
        Ok(())
    }

    fn answer_in(&mut self, session: &Session) -> Result<()> {
        let max_tokens = setting_or("max_tokens", MAX_TOKENS)?;
        self.set_sampler(session)?;
        let rendering = self.feed(session, max_tokens, true)?;
        let generated = session.generate(&Generate { max_tokens, stream: true, ..Generate::default() })?;
        tell(generated.finish);
        self.keep(session, rendering, generated)
    }

    /// Sets the sampler where the settings ask for another one: else its random generator goes on where it stood.
    fn set_sampler(&mut self, session: &Session) -> Result<()> {
        let wanted = Sampling::read()?;
        if self.sampling != Some(wanted) {
            session.set_sampler(&wanted.sampler()?, &[])?;
            self.sampling = Some(wanted);
        }
        Ok(())
    }

    /// Brings the session to where the reply begins, or with no `prompt` to the end of the last turn, dropping turns where they don't fit. Answers the rendering that it then stands for.
    fn feed(&mut self, session: &Session, max_tokens: u32, prompt: bool) -> Result<String> {
        let room = Room::new(session.context()?, max_tokens);
        let fitted = fit::fit(&self.turns, room, |turns| self.plan(session, turns, prompt))?;
        self.fed = None;
        self.turns.drain(..2 * fitted.dropped);
        session.truncate(fitted.feed.kept)?;
        // The opening by itself: actors with one system prompt share its keys and values.
        let (opening, rest) =
            fitted.feed.tokens.split_at(if fitted.feed.kept == 0 { self.opening(session, &fitted.feed.tokens)? } else { 0 });
        session.append(opening)?;
        session.append(rest)?;
        if fitted.dropped > 0 {
            let (dropped, fed) = (fitted.dropped, fitted.feed.tokens.len());
            log!(Level::Notice, "context full: dropped the {dropped} oldest turns and prefilled {fed} tokens again");
        }
        Ok(fitted.feed.rendering)
    }

    /// With how many of these tokens any conversation begins that has this system prompt.
    fn opening(&self, session: &Session, tokens: &[Token]) -> Result<usize> {
        let Some(first) = self.turns.first() else { return Ok(0) };
        let other = Message::user(if first.content.starts_with('A') { "B" } else { "A" });
        let messages: Vec<Message> = self.system.iter().cloned().chain([other]).collect();
        let model = session.model();
        Ok(common_prefix(tokens, &model.tokenize_rendered(&model.render(&messages, true)?)?))
    }

    /// What must be fed so that the session stands for the system prompt and these turns.
    fn plan(&self, session: &Session, turns: &[Message], prompt: bool) -> Result<Feed> {
        if turns.is_empty() {
            return Ok(Feed { kept: 0, tokens: Vec::new(), rendering: String::new() });
        }
        let messages: Vec<Message> = self.system.iter().chain(turns).cloned().collect();
        let model = session.model();
        let rendering = model.render(&messages, prompt)?;
        if let Some((fed, rest)) = self.fed.as_ref().and_then(|fed| Some((fed, fed.rest_of(&rendering)?))) {
            let tokens = model.tokenize_continuation(rest)?;
            return Ok(fed.continued(session.length()?, tokens, rendering));
        }
        let tokens = model.tokenize_rendered(&rendering)?;
        Ok(Feed::compared(&session.tokens(0)?, tokens, rendering))
    }

    /// Keeps the reply, whole or cut short, as the assistant's turn.
    fn keep(&mut self, session: &Session, mut rendering: String, generated: Generated) -> Result<()> {
        let end = match generated.finish {
            Finish::End => session.tokens(session.length()?.saturating_sub(1))?.first().copied(),
            _ => None,
        };
        match String::from_utf8(generated.text) {
            Ok(reply) => {
                rendering.push_str(&reply);
                self.fed = Some(Fed { text: rendering, end });
                self.turns.push(Message::assistant(reply));
            }
            // Cut inside a character: no text stands for these tokens.
            Err(cut) => self.turns.push(Message::assistant(String::from_utf8_lossy(cut.as_bytes()))),
        }
        Ok(())
    }
}

/// Says why a reply was cut short.
fn tell(finish: Finish) {
    match finish {
        Finish::Context => log(Level::Notice, "context full: the reply ends here, and the next message drops the oldest turns"),
        Finish::TokenLimit => log(Level::Notice, "the limit of tokens of one message is reached: the reply ends here"),
        Finish::Length => log(Level::Debug, "max_tokens is reached: the reply ends here"),
        _ => {}
    }
}
