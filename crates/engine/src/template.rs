//! Chat templates: messages to the text that a model was trained on.
//!
//! A template is Jinja, from the model's file and hence hostile: it renders in an environment without files or includes, with bounded
//! fuel, depth and output (`limits.rs`). The environment is that of Hugging Face `transformers`
//! (`apply_chat_template`): trimmed blocks, Python's string methods, `raise_exception`, `strftime_now`, `tojson` as Python writes it,
//! values printed as Python prints them (but a tuple is a list here), and `generation` tags, which are passed over.
//! Where a file has no template, the family's own is taken, written in the same language ([`FAMILIES`]).
//!
//! Layout: the template, then the environment, then Python's JSON and dates.

use crate::error::Error;
use crate::gguf::{GgufFile, printable};
use crate::limits::{
    TEMPLATE_BYTES_MAX, TEMPLATE_DEPTH_MAX, TEMPLATE_ERROR_CHARS_MAX, TEMPLATE_FUEL_MAX, TEMPLATE_JSON_DEPTH_MAX,
    TEMPLATE_OUTPUT_BYTES_MAX, TEMPLATE_STACK_BYTES,
};
use crate::tokenizer::Tokenizer;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Kwargs, Object, Value, ValueKind};
use minijinja::{Environment, ErrorKind, context};
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// One turn of a conversation.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role` that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// A message as a template sees it: a map whose keys stand in the order in which Python would print them.
impl Object for Message {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "role" => Some(Value::from(&self.role)),
            "content" => Some(Value::from(&self.content)),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["role", "content"])
    }
}

/// Where a template comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TemplateOrigin {
    /// The model's file.
    File,
    /// The model's family, because the file has none.
    Family(&'static str),
}

/// A model's chat template.
pub struct ChatTemplate {
    source: String,
    known: String, // the source in tags that the engine knows
    origin: TemplateOrigin,
    environment: Environment<'static>,
}

/// The templates of families, and how a file without one is recognised: by its architecture or by a piece of its vocabulary.
const FAMILIES: [(&str, Recognised, &str); 3] = [
    ("gemma", Recognised::ByArchitecture("gemma"), GEMMA),
    ("chatml", Recognised::ByPiece("<|im_start|>"), CHATML),
    ("llama3", Recognised::ByPiece("<|start_header_id|>"), LLAMA3),
];

enum Recognised {
    ByArchitecture(&'static str), // its beginning
    ByPiece(&'static str),
}

/// Google's own, less BOS, which the file's tokenizer adds: a system message opens the first turn, the assistant is `model`.
const GEMMA: &str = "\
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if prefix and not turns -%}{{ '<start_of_turn>user\n' + prefix | trim + '<end_of_turn>\n' }}{%- endif -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}";

const CHATML: &str = "\
{%- for message in messages -%}
    {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}";

const LLAMA3: &str = "\
{{- bos_token -}}
{%- for message in messages -%}
    {{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}";

impl ChatTemplate {
    /// The template of a file, or of its family if the file has none.
    ///
    /// # Errors
    /// [`Error::Template`] if it is too long or cannot be parsed, [`Error::TemplateMissing`] if there is none and no family is recognised.
    pub fn from_gguf(file: &GgufFile, tokenizer: &Tokenizer) -> Result<ChatTemplate, Error> {
        let architecture = file.optional_string("general.architecture")?.unwrap_or_default();
        Self::new(file.optional_string("tokenizer.chat_template")?, architecture, tokenizer)
    }

    /// A template of this source, or that of the architecture's family if there is none.
    ///
    /// # Errors
    /// As [`ChatTemplate::from_gguf`].
    pub fn new(source: Option<&str>, architecture: &str, tokenizer: &Tokenizer) -> Result<ChatTemplate, Error> {
        let (source, origin) = match source {
            Some(source) => (source, TemplateOrigin::File),
            None => family(architecture, tokenizer)?,
        };
        if source.len() > TEMPLATE_BYTES_MAX {
            return Err(Error::Template { why: format!("it has {} bytes; at most {TEMPLATE_BYTES_MAX} are accepted", source.len()) });
        }
        let known = without_generation_tags(source);
        let template = ChatTemplate { source: source.to_owned(), known, origin, environment: environment(tokenizer) };
        on_deep_stack(|| template.environment.template_from_str(&template.known).map(drop).map_err(|e| failure(&e)))?;
        Ok(template)
    }

    /// Where it comes from.
    pub fn origin(&self) -> TemplateOrigin {
        self.origin
    }

    /// Its source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation; `add_prompt` opens the assistant's turn at its end. [`Tokenizer::encode_rendered`] makes tokens of it.
    ///
    /// # Errors
    /// [`Error::Template`] if the template raises an exception (some refuse two turns of one role), fails, or exceeds its bounds.
    pub fn render(&self, messages: &[Message], add_prompt: bool) -> Result<String, Error> {
        self.render_at(messages, add_prompt, unix_seconds())
    }

    /// The same at another time than now, for templates that write the date (in UTC).
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_at(&self, messages: &[Message], add_prompt: bool, unix_seconds: u64) -> Result<String, Error> {
        let turns: Value = messages.iter().map(|m| Value::from_object(m.clone())).collect();
        let now = Value::from_function(move |format: &str| strftime(format, unix_seconds));
        let context =
            context! { messages => turns, add_generation_prompt => add_prompt, tools => (), documents => (), strftime_now => now };
        let message_bytes: usize = messages.iter().map(|m| m.content.len()).sum();
        let mut output = Bounded { bytes: Vec::new(), left_bytes: TEMPLATE_OUTPUT_BYTES_MAX + message_bytes };
        on_deep_stack(|| {
            let template = self.environment.template_from_str(&self.known).map_err(|e| failure(&e))?;
            template.render_captured_to(context, &mut output).map(drop).map_err(|e| failure(&e))
        })?;
        String::from_utf8(output.bytes).map_err(|_| Error::Template { why: "its output is not UTF-8".to_owned() })
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTemplate({:?}, {} bytes)", self.origin, self.source.len())
    }
}

fn family(architecture: &str, tokenizer: &Tokenizer) -> Result<(&'static str, TemplateOrigin), Error> {
    let suits = |by: &Recognised| match by {
        Recognised::ByArchitecture(begin) => architecture.starts_with(begin),
        Recognised::ByPiece(text) => tokenizer.find(text).is_some(),
    };
    let found = FAMILIES.iter().find(|(_, by, _)| suits(by));
    let missing = || Error::TemplateMissing { architecture: printable(architecture) };
    found.map(|&(name, _, source)| (source, TemplateOrigin::Family(name))).ok_or_else(missing)
}

/// `{% generation %}` and `{% endgeneration %}` mark the assistant's words for training and are nothing to a rendering: a condition that
/// holds stands for them, which keeps the tags' treatment of white space.
fn without_generation_tags(source: &str) -> String {
    let mut known = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(begin) = rest.find("{%") {
        let (before, tag) = rest.split_at(begin + 2);
        known.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let word = tag[..end].trim_matches(|c: char| matches!(c, '-' | '+') || c.is_whitespace());
        let instead = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        known.push_str(&tag[..end].replace(word, instead));
        rest = &tag[end..];
    }
    known.push_str(rest);
    known
}

/// The message that a user can act on: what the template raised, or what failed where.
fn failure(error: &minijinja::Error) -> Error {
    let why = match (error.kind(), error.detail()) {
        (ErrorKind::WriteFailure, _) => format!("it renders more than {TEMPLATE_OUTPUT_BYTES_MAX} bytes"),
        (ErrorKind::OutOfFuel, _) => format!("it runs more than {TEMPLATE_FUEL_MAX} steps"),
        (_, Some(detail)) => {
            let said: String = detail.chars().take(TEMPLATE_ERROR_CHARS_MAX).flat_map(char::escape_debug).collect();
            format!("{said} (line {})", error.line().unwrap_or(0))
        }
        (kind, None) => format!("{kind} (line {})", error.line().unwrap_or(0)),
    };
    Error::Template { why }
}

/// Runs `work` on a stack that fuel cannot exhaust: a template may nest a list in a list with every few steps, and such a value is
/// printed and dropped recursively. Only the pages that are touched cost memory.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    let failed = |why: &str| Error::Template { why: why.to_owned() };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("template".to_owned()).stack_size(TEMPLATE_STACK_BYTES);
        let running = thread.spawn_scoped(scope, work).map_err(|e| failed(&format!("no thread to render it on: {e}")))?;
        running.join().unwrap_or_else(|_| Err(failed("the template engine panicked")))
    })
}

/// Output that ends in an error when it grows too long.
struct Bounded {
    bytes: Vec<u8>,
    left_bytes: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left_bytes = self.left_bytes.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn environment(tokenizer: &Tokenizer) -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters"));
    environment.set_debug(false);
    environment.set_fuel(Some(TEMPLATE_FUEL_MAX));
    environment.set_recursion_limit(TEMPLATE_DEPTH_MAX);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.set_formatter(|output, state, value| match printed(value) {
        Some(text) => output.write_str(&text?).map_err(Into::into),
        None => minijinja::escape_formatter(output, state, value),
    });
    environment.add_filter("string", |value: &Value| printed(value).unwrap_or_else(|| Ok(value.to_string())));
    environment.add_filter("tojson", to_json);
    environment.add_filter("indent", indent);
    for (name, text) in tokenizer.named() {
        environment.add_global(name.to_owned(), Value::from(text));
    }
    environment
}

/// What Python's `str` makes of a value, where the engine's own text is another one.
fn printed(value: &Value) -> Option<Result<String, minijinja::Error>> {
    matches!(value.kind(), ValueKind::Bool | ValueKind::None | ValueKind::Seq | ValueKind::Map).then(|| {
        let mut json = Json { style: Style::Python, ..Json::default() };
        json.value(value, 0).map(|()| json.text)
    })
}

/// `tojson` as Python's `json.dumps(ensure_ascii=False)` writes it.
fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<(String, String)> = match options.get::<Option<Value>>("separators")? {
        Some(pair) => Some((pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string())),
        None => None,
    };
    let (ensure_ascii, sort_keys): (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let (between, after_key) = separators.unwrap_or_else(|| (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()));
    let style = Style::Json { ensure_ascii: ensure_ascii == Some(true) };
    let indent = indent.map(|n| n.min(16));
    let mut json = Json { text: String::new(), style, indent, between, after_key, sort_keys: sort_keys == Some(true) };
    json.value(value, 0)?;
    Ok(json.text)
}

/// `indent`, whose width the engine's own does not bound.
fn indent(text: &str, width: Option<usize>, options: Kwargs) -> Result<String, minijinja::Error> {
    let width = width.or(options.get("width")?).unwrap_or(4).min(256);
    let first: Option<bool> = options.get("first")?;
    let blank: Option<bool> = options.get("blank")?;
    options.assert_all_used()?;
    let pad = " ".repeat(width);
    let padded = |(i, line): (usize, &str)| match (i, line) {
        (0, line) if first != Some(true) => line.to_owned(),
        (_, "") if blank != Some(true) => String::new(),
        (_, line) => format!("{pad}{line}"),
    };
    Ok(text.split('\n').enumerate().map(padded).collect::<Vec<_>>().join("\n"))
}

/// A value as Python writes it.
struct Json {
    text: String,
    style: Style,
    indent: Option<usize>,
    between: String,
    after_key: String,
    sort_keys: bool,
}

#[derive(Clone, Copy)]
enum Style {
    Json { ensure_ascii: bool },
    Python, // `repr`
}

impl Default for Json {
    fn default() -> Json {
        let (between, after_key) = (", ".to_owned(), ": ".to_owned());
        Json { text: String::new(), style: Style::Json { ensure_ascii: false }, indent: None, between, after_key, sort_keys: false }
    }
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), minijinja::Error> {
        if depth > TEMPLATE_JSON_DEPTH_MAX || self.text.len() > TEMPLATE_OUTPUT_BYTES_MAX {
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "a value is too large to be printed"));
        }
        let [none, yes, no] = match self.style {
            Style::Json { .. } => ["null", "true", "false"],
            Style::Python => ["None", "True", "False"],
        };
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.text.push_str(none),
            ValueKind::Bool => self.text.push_str(if value.is_true() { yes } else { no }),
            ValueKind::Number => _ = write!(self.text, "{value}"),
            ValueKind::Map => self.map(value, depth)?,
            ValueKind::Seq | ValueKind::Iterable => {
                self.items('[', ']', value.try_iter()?, depth, |json, item| json.value(&item, depth + 1))?
            }
            _ => self.string(&value.to_string()),
        }
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), minijinja::Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        self.items('{', '}', keys.into_iter(), depth, |json, key| {
            match (json.style, key.kind()) {
                (Style::Python, kind) if kind != ValueKind::String => json.value(&key, depth + 1)?,
                _ => json.string(&key.to_string()),
            }
            json.text.push_str(&json.after_key);
            json.value(&value.get_item(&key)?, depth + 1)
        })
    }

    fn items(
        &mut self,
        open: char,
        close: char,
        items: impl Iterator<Item = Value>,
        depth: usize,
        mut write: impl FnMut(&mut Json, Value) -> Result<(), minijinja::Error>,
    ) -> Result<(), minijinja::Error> {
        self.text.push(open);
        let mut empty = true;
        for item in items {
            if !empty {
                self.text.push_str(&self.between);
            }
            empty = false;
            self.line(depth + 1);
            write(self, item)?;
        }
        if !empty {
            self.line(depth);
        }
        self.text.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(width) = self.indent {
            _ = write!(self.text, "\n{:1$}", "", width * depth);
        }
    }

    fn string(&mut self, text: &str) {
        match self.style {
            Style::Python => python_string(&mut self.text, text),
            Style::Json { ensure_ascii } => {
                let quoted = serde_json::to_string(text).expect("a string always serialises");
                for c in quoted.chars() {
                    match c {
                        c if c.is_ascii() || !ensure_ascii => self.text.push(c),
                        c => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| _ = write!(self.text, "\\u{unit:04x}")),
                    }
                }
            }
        }
    }
}

/// `repr` of a string: in single quotes, unless it has some and no double ones.
fn python_string(to: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    to.push(quote);
    for c in text.chars() {
        match c {
            '\n' => to.push_str("\\n"),
            '\r' => to.push_str("\\r"),
            '\t' => to.push_str("\\t"),
            '\\' => to.push_str("\\\\"),
            c if c == quote => to.extend(['\\', c]),
            c if c.is_control() => _ = write!(to, "\\x{:02x}", c as u32),
            c => to.push(c),
        }
    }
    to.push(quote);
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"]; // from 1 January 1970

/// Python's `strftime` for what templates ask of it, in UTC. Other directives stay as they are.
fn strftime(format: &str, unix_seconds: u64) -> String {
    let (days, second_of_day) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[(days % 7) as usize]);
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        let directive = if c == '%' { chars.next() } else { None };
        _ = match directive {
            None => write!(text, "{c}"),
            Some('Y') => write!(text, "{year}"),
            Some('y') => write!(text, "{:02}", year % 100),
            Some('m') => write!(text, "{month:02}"),
            Some('d') => write!(text, "{day:02}"),
            Some('B') => write!(text, "{month_name}"),
            Some('b') => write!(text, "{}", &month_name[..3]),
            Some('A') => write!(text, "{day_name}"),
            Some('a') => write!(text, "{}", &day_name[..3]),
            Some('H') => write!(text, "{:02}", second_of_day / 3600),
            Some('M') => write!(text, "{:02}", second_of_day / 60 % 60),
            Some('S') => write!(text, "{:02}", second_of_day % 60),
            Some('%') => write!(text, "%"),
            Some(other) => write!(text, "%{other}"),
        };
    }
    text
}

/// Year, month and day of a day number from 1 January 1970 (Hinnant's `civil_from_days`).
fn civil_date(days: u64) -> (u64, usize, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153; // from March
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month as usize, day_of_year - (153 * shifted_month + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_as_python_prints_them() {
        for (seconds, format, expected) in [
            (0, "%A %a %d %B %b %Y %y %m", "Thursday Thu 01 January Jan 1970 70 01"),
            (951_782_400, "%d %b %Y", "29 Feb 2000"),
            (1_795_236_272, "%Y-%m-%dT%H:%M:%S %a", "2026-11-21T04:44:32 Sat"),
            (0, "100%% %q %", "100% %q %"),
        ] {
            assert_eq!(strftime(format, seconds), expected);
        }
    }

    #[test]
    fn json_is_as_python_prints_it() {
        let mut environment = Environment::new();
        environment.set_formatter(|output, state, value| match printed(value) {
            Some(text) => output.write_str(&text?).map_err(Into::into),
            None => minijinja::escape_formatter(output, state, value),
        });
        environment.add_filter("string", |value: &Value| printed(value).unwrap_or_else(|| Ok(value.to_string())));
        environment.add_filter("tojson", to_json);
        for (source, expected) in [
            ("{{ {'a': [1, 2.5, none, true], 'b': 'é<\"'} | tojson }}", r#"{"a": [1, 2.5, null, true], "b": "é<\""}"#),
            ("{{ {'a': [1], 'b': {}} | tojson(indent=2) }}", "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}"),
            ("{{ {'b': 1, 'a': [2, 3]} | tojson(separators=(',', ':'), sort_keys=true) }}", r#"{"a":[2,3],"b":1}"#),
            ("{{ 'é👍' | tojson(ensure_ascii=true) }}", r#""\u00e9\ud83d\udc4d""#),
        ] {
            assert_eq!(environment.render_str(source, ()).unwrap(), expected);
        }
    }
}
