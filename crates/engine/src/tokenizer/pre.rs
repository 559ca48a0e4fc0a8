//! Pre-tokenizers: cutting text into words, within which byte-level BPE merges.
//!
//! Each is a regular expression in its origin and a scanner here (a backtracking engine has limits that a long run of spaces exceeds; a
//! scanner is linear and total). The expressions stand at the scanners; [`TABLE`] names the ones that GGUF files ask for.

use super::letters::{begins_word, continues_word, is_letter};
use crate::error::Error;
use crate::gguf::printable;

/// How a vocabulary's text is cut, and what else depends on the same name.
#[derive(Debug)]
pub(super) struct Pre {
    names: &'static [&'static str],
    split: Split,
    /// A word that is a piece by itself is not merged. (A `tokenizer.json` says so itself.)
    pub(super) whole_words: bool,
    /// Whether a text begins with BOS if the file does not say.
    pub(super) add_bos: bool,
}

#[derive(Debug)]
enum Split {
    Gpt2,
    DigitsThenGpt2,
    Llama3 { digits_max: usize },
    Tekken,
    Gpt4o,
}

/// `tokenizer.ggml.pre` and what it means. Adding a name is one line.
#[rustfmt::skip]
const TABLE: [Pre; 7] = [
    Pre { names: &["gpt-2", "default"],                split: Split::Gpt2,                     whole_words: false, add_bos: false },
    Pre { names: &["smollm"],                          split: Split::DigitsThenGpt2,           whole_words: false, add_bos: false },
    Pre { names: &["llama-bpe", "llama3", "llama-v3"], split: Split::Llama3 { digits_max: 3 }, whole_words: true,  add_bos: true },
    Pre { names: &["dbrx"],                            split: Split::Llama3 { digits_max: 3 }, whole_words: false, add_bos: false },
    Pre { names: &["qwen2"],                           split: Split::Llama3 { digits_max: 1 }, whole_words: false, add_bos: false },
    Pre { names: &["tekken"],                          split: Split::Tekken,                   whole_words: true,  add_bos: true },
    Pre { names: &["gpt-4o"],                          split: Split::Gpt4o,                    whole_words: false, add_bos: false },
];

impl Pre {
    /// The pre-tokenizer of this name.
    ///
    /// # Errors
    /// [`Error::Unsupported`], naming those that there are.
    pub(super) fn named(name: &str) -> Result<&'static Pre, Error> {
        TABLE.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| Error::Unsupported {
            what: "pre-tokenizer",
            got: printable(name),
            supported: TABLE.iter().flat_map(|pre| pre.names).copied().collect::<Vec<_>>().join(", "),
        })
    }

    /// Calls `emit` for each word of `text`, from left to right.
    pub(super) fn words<'a>(&self, text: &'a str, mut emit: impl FnMut(&'a str)) {
        match self.split {
            Split::Gpt2 => each(text, gpt2_word, &mut emit),
            Split::DigitsThenGpt2 => {
                for part in text.split_inclusive(char::is_numeric) {
                    let digit_bytes = part.chars().next_back().filter(|c| c.is_numeric()).map_or(0, char::len_utf8);
                    let (before, digit) = part.split_at(part.len() - digit_bytes);
                    each(before, gpt2_word, &mut emit);
                    each(digit, str::len, &mut emit);
                }
            }
            Split::Llama3 { digits_max } => each(text, |rest| llama3_word(rest, digits_max), &mut emit),
            Split::Tekken => each(text, |rest| cased_word(rest, 1, |_| None), &mut emit),
            Split::Gpt4o => each(text, |rest| cased_word(rest, 3, contraction_in_any_case), &mut emit),
        }
    }
}

/// Cuts off words of `word_len(rest)` bytes until nothing is left.
fn each<'a>(text: &'a str, word_len: impl Fn(&str) -> usize, emit: &mut impl FnMut(&'a str)) {
    let mut rest = text;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(word_len(rest));
        emit(word);
        rest = after;
    }
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
fn gpt2_word(rest: &str) -> usize {
    let body = rest.strip_prefix(' ').unwrap_or(rest);
    let space_bytes = rest.len() - body.len();
    contraction(rest, |word, end| word.starts_with(end))
        .or_else(|| run(body, is_letter).or_else(|| run(body, char::is_numeric)).or_else(|| run(body, is_sign)).map(|n| space_bytes + n))
        .unwrap_or_else(|| spaces(rest))
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`, where Qwen takes
/// digits one by one
fn llama3_word(rest: &str, digits_max: usize) -> usize {
    contraction_in_any_case(rest)
        .or_else(|| lead_and_letters(rest))
        .or_else(|| digits(rest, digits_max))
        .or_else(|| signs_and(rest, &['\r', '\n']))
        .or_else(|| spaces_to_newline(rest))
        .unwrap_or_else(|| spaces(rest))
}

/// Mistral's tekken: `L?U*W+|L?U+W*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`, where L is `[^\r\n\p{L}\p{N}]`, U is
/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]` and W is `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`. GPT-4o's has `(?i:'s|'t|'re|'ve|'m|'ll|'d)?` after both kinds of
/// words (`tail`) and takes digits by three.
fn cased_word(rest: &str, digits_max: usize, tail: impl Fn(&str) -> Option<usize>) -> usize {
    let lead_bytes = rest.chars().next().filter(|&c| is_lead(c)).map_or(0, char::len_utf8);
    let ways = [(lead_bytes, upper_then_lower as fn(&str) -> _), (0, upper_then_lower), (lead_bytes, upper), (0, upper)];
    ways.into_iter()
        .find_map(|(lead_bytes, letters)| letters(&rest[lead_bytes..]).map(|len| lead_bytes + len))
        .map(|len| len + tail(&rest[len..]).unwrap_or(0))
        .or_else(|| digits(rest, digits_max))
        .or_else(|| signs_and(rest, &['\r', '\n', '/']))
        .or_else(|| spaces_to_newline(rest))
        .unwrap_or_else(|| spaces(rest))
}

/// `U*W+`. Some characters are of both kinds: where none follows that is W alone, U gives back as far as its last that is W too.
fn upper_then_lower(text: &str) -> Option<usize> {
    let upper_bytes = run(text, begins_word).unwrap_or(0);
    if let Some(lower_bytes) = run(&text[upper_bytes..], continues_word) {
        return Some(upper_bytes + lower_bytes);
    }
    let (at, last) = text[..upper_bytes].char_indices().rfind(|&(_, c)| continues_word(c))?;
    Some(at + last.len_utf8())
}

/// `U+W*`, where [`upper_then_lower`] found no W.
fn upper(text: &str) -> Option<usize> {
    run(text, begins_word)
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)`: the long s is an s as well.
fn contraction_in_any_case(rest: &str) -> Option<usize> {
    const LONG_S: &str = "'\u{17f}";
    let begins = |word: &str, end: &str| word.get(..end.len()).is_some_and(|w| w.eq_ignore_ascii_case(end));
    if rest.starts_with(LONG_S) { Some(LONG_S.len()) } else { contraction(rest, begins) }
}

fn contraction(rest: &str, begins: impl Fn(&str, &str) -> bool) -> Option<usize> {
    let after = rest.strip_prefix('\'')?;
    ["s", "t", "re", "ve", "m", "ll", "d"].into_iter().find(|end| begins(after, end)).map(|end| 1 + end.len())
}

fn lead_and_letters(rest: &str) -> Option<usize> {
    let lead_bytes = rest.chars().next().filter(|&c| is_lead(c)).map_or(0, char::len_utf8);
    run(&rest[lead_bytes..], is_letter).map(|n| lead_bytes + n)
}

fn is_lead(c: char) -> bool {
    !matches!(c, '\r' | '\n') && !is_letter(c) && !c.is_numeric()
}

fn digits(rest: &str, digits_max: usize) -> Option<usize> {
    let len = rest.chars().take(digits_max).take_while(|c| c.is_numeric()).map(char::len_utf8).sum();
    (len > 0).then_some(len)
}

/// ` ?[^\s\p{L}\p{N}]+` and what may come after it.
fn signs_and(rest: &str, after: &[char]) -> Option<usize> {
    let body = rest.strip_prefix(' ').unwrap_or(rest);
    let signs_end = rest.len() - body.len() + run(body, is_sign)?;
    Some(signs_end + run(&rest[signs_end..], |c| after.contains(&c)).unwrap_or(0))
}

fn spaces_to_newline(rest: &str) -> Option<usize> {
    let spaces = &rest[..run(rest, char::is_whitespace)?];
    spaces.rfind(['\r', '\n']).map(|at| at + 1)
}

/// `\s+(?!\S)|\s+`: a run of spaces, less the last one if a word follows and others are left.
fn spaces(rest: &str) -> usize {
    let len = run(rest, char::is_whitespace).expect("what is no letter, number or sign is a space");
    let last_bytes = rest[..len].chars().next_back().map_or(0, char::len_utf8);
    if len == rest.len() || len == last_bytes { len } else { len - last_bytes }
}

fn is_sign(c: char) -> bool {
    !c.is_whitespace() && !is_letter(c) && !c.is_numeric()
}

/// Bytes of the leading characters that `accepts`, `None` if there are none.
fn run(text: &str, accepts: impl Fn(char) -> bool) -> Option<usize> {
    let len = text.find(|c| !accepts(c)).unwrap_or(text.len());
    (len > 0).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pre: &str, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        Pre::named(pre).unwrap().words(text, |w| words.push(w.to_owned()));
        assert_eq!(words.concat(), text);
        assert!(words.iter().all(|w| !w.is_empty()));
        words
    }

    #[test]
    fn words_are_cut_as_the_patterns_say() {
        for (pre, text, expected) in [
            ("gpt-2", "Hello  world's 1234!\n\n x ", &["Hello", " ", " world", "'s", " 1234", "!", "\n\n", " x", " "][..]),
            ("gpt-2", "'S 'll'", &["'", "S", " '", "ll", "'"]),
            ("smollm", "a 12 b", &["a", " ", "1", "2", " b"]),
            ("smollm", "½x", &["½", "x"]),
            ("llama3", "Don'T  12345 a\n\n b...\r\n", &["Don", "'T", " ", " ", "123", "45", " a", "\n\n", " b", "...\r\n"]),
            ("llama3", "(foo) \t\n  bar", &["(foo", ")", " \t\n", " ", " bar"]),
            ("llama3", "x'ſy 'LL", &["x", "'ſ", "y", " '", "LL"]),
            ("qwen2", "x=42", &["x", "=", "4", "2"]),
            ("llama3", "a\u{301}b", &["a", "\u{301}b"]),
            ("tekken", "a\u{301}b camelCase HTTPServer 12", &["a\u{301}b", " camel", "Case", " HTTPServer", " ", "1", "2"]),
            ("tekken", "AB AあB don't", &["AB", " Aあ", "B", " don", "'t"]),
            ("tekken", "a//\n/b\u{301}", &["a", "//\n/", "b\u{301}"]),
            ("gpt-4o", "don'T I'LLx 1234", &["don'T", " I'LL", "x", " ", "123", "4"]),
        ] {
            assert_eq!(words(pre, text), expected, "{pre} {text:?}");
        }
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let message = Pre::named("tekkenish").unwrap_err().to_string();
        assert!(message.contains("`tekkenish`") && message.contains("llama-bpe"), "{message}");
    }
}
