//! Models: their facts, their tokenizer and their chat template.
#![forbid(unsafe_code)]

use alloc::{string::String, vec::Vec};

use crate::{Result, host, json, message::utf8};

/// A token's number in its model's vocabulary.
pub type Token = u32;

const ADD_SPECIAL: u32 = 1;
const PARSE_SPECIAL: u32 = 2;

/// A model by name. The default one is that which the setting "model" names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    name: String,
}

/// Facts of a model: `dw_model_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelInfo {
    /// How many logits a position has.
    pub vocabulary: u32,
    /// How many tokens the model was trained for.
    pub context_max: u32,
    /// The token that begins a text, or -1.
    pub bos: i32,
    /// The token that ends one, or -1.
    pub eos: i32,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// Who speaks in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Whoever set the conversation up.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// A tool that the model called.
    Tool,
}

impl Model {
    /// The model of that name, where the host has it and lets this actor use it.
    pub fn named(name: &str) -> Model {
        Model { name: name.into() }
    }

    /// The name asked for; empty for the default model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's facts.
    ///
    /// # Errors
    /// If there is no such model.
    pub fn info(&self) -> Result<ModelInfo> {
        host::model_info(&self.name)
    }

    /// Plain text to tokens: nothing is added, and special strings in it are text.
    ///
    /// # Errors
    /// If there is no such model.
    pub fn tokenize(&self, text: &str) -> Result<Vec<Token>> {
        host::tokenize(&self.name, text, 0)
    }

    /// A whole rendering of the chat template to tokens: its special strings become special tokens, and what the model's file wants
    /// before every text stands there exactly once.
    ///
    /// # Errors
    /// If there is no such model.
    pub fn tokenize_rendered(&self, rendering: &str) -> Result<Vec<Token>> {
        host::tokenize(&self.name, rendering, ADD_SPECIAL | PARSE_SPECIAL)
    }

    /// A later piece of a rendering to tokens: special strings become special tokens, nothing is added.
    ///
    /// # Errors
    /// If there is no such model.
    pub fn tokenize_continuation(&self, piece: &str) -> Result<Vec<Token>> {
        host::tokenize(&self.name, piece, PARSE_SPECIAL)
    }

    /// Tokens to text, as bytes: a token may end inside a character.
    ///
    /// # Errors
    /// If there is no such model, or it has no such token.
    pub fn detokenize(&self, tokens: &[Token]) -> Result<Vec<u8>> {
        host::detokenize(&self.name, tokens)
    }

    /// Whether the token ends a turn or the text.
    ///
    /// # Errors
    /// If there is no such model.
    pub fn is_end(&self, token: Token) -> Result<bool> {
        host::is_end(&self.name, token)
    }

    /// A conversation as the model wants to read it; with `add_prompt` it ends where the model's reply begins.
    ///
    /// # Errors
    /// If the model's chat template refuses the messages.
    pub fn render(&self, messages: &[Message], add_prompt: bool) -> Result<String> {
        let rendering = host::chat_template(&self.name, &json::messages(messages), add_prompt)?;
        utf8("chat_template", rendering)
    }
}

/// How many tokens two sequences begin with in common.
pub fn common_prefix(one: &[Token], other: &[Token]) -> usize {
    one.iter().zip(other).take_while(|(left, right)| left == right).count()
}

impl Message {
    /// What sets the conversation up.
    pub fn system(content: impl Into<String>) -> Message {
        Message { role: Role::System, content: content.into() }
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Message {
        Message { role: Role::User, content: content.into() }
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message { role: Role::Assistant, content: content.into() }
    }
}

impl Role {
    /// The word that chat templates use.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}
