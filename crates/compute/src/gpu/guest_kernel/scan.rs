//! A look at a guest's text before naga sees it: naga recurses over long expressions and chains of `else if`, and its evaluator of
//! constants allocates whole arrays, copies them at each use and walks shared ones as trees. A few hundred bytes can then overflow
//! the stack or ask for gigabytes. So what could do that is refused here, by looking at the tokens alone.
//!
//! Naga is given the text that this file returns, in which comments are blanks: nothing can hide behind another idea of a comment.

use super::GuestKernelError as Error;
use std::collections::HashSet;

/// How deep brackets of all kinds may be nested.
const NESTING_MAX: usize = 64;
/// How many operators, dots and brackets may stand in one statement: naga recurses once for each, at worst.
const OPERATORS_MAX: usize = 2048;
/// How many `else if` there may be in all: each is nested in the one before.
const ELSE_IFS_MAX: usize = 64;

/// What may be called without arguments although the text declares no function of that name: barriers, and small zeros.
const CALLED_WITHOUT_ARGUMENTS: [&str; 4] = ["workgroupBarrier", "storageBarrier", "textureBarrier", "subgroupBarrier"];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token<'a> {
    /// A name or a keyword.
    Word(&'a str),
    /// Digits and the letters behind them. A dot or a sign within a number is a mark of its own.
    Number,
    /// Any other byte.
    Mark(u8),
}

/// Returns the text without its comments, at the same places, if nothing in it can hurt the compiler.
///
/// # Errors
/// [`Error::NotAscii`], [`Error::TooDeep`], [`Error::ConstTable`] or [`Error::ZeroValue`].
pub(super) fn scan(source: &str) -> Result<String, Error> {
    let text = blank_comments(source)?;
    let tokens = tokens(&text);
    bound_depths(&tokens)?;
    let names = Names::declared(&tokens);
    refuse_const_tables(&tokens, &names)?;
    refuse_zero_values(&tokens, &names)?;
    Ok(text)
}

/// Replaces comments by blanks, line breaks by themselves. What remains must be ASCII, so that a token is what it looks like.
fn blank_comments(source: &str) -> Result<String, Error> {
    let bytes = source.as_bytes();
    let mut text = String::with_capacity(bytes.len());
    let (mut at, mut block_depth, mut in_line) = (0, 0_usize, false);
    while at < bytes.len() {
        let (here, pair) = (bytes[at], bytes.get(at..at + 2).unwrap_or_default());
        let mut width = 1;
        if matches!(here, b'\n' | b'\r') {
            in_line = false;
        } else if in_line {
        } else if pair == b"/*" {
            (block_depth, width) = (block_depth + 1, 2);
        } else if block_depth > 0 && pair == b"*/" {
            (block_depth, width) = (block_depth - 1, 2);
            text.push_str("  ");
            at += width;
            continue;
        } else if block_depth == 0 && pair == b"//" {
            in_line = true;
        }
        match here {
            b'\n' | b'\r' => text.push(here as char),
            _ if in_line || block_depth > 0 => text.push_str(&"  "[..width]),
            _ if here.is_ascii() => text.push(here as char),
            _ => return Err(Error::NotAscii { offset: at }),
        }
        at += width;
    }
    Ok(text)
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let (bytes, mut tokens, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let start = at;
        at += bytes[at..].iter().take_while(|byte| is_word(byte)).count().max(1);
        match bytes[start] {
            byte if byte.is_ascii_digit() => tokens.push(Token::Number),
            byte if is_word(&byte) => tokens.push(Token::Word(&text[start..at])),
            byte if byte.is_ascii_whitespace() => {}
            byte => tokens.push(Token::Mark(byte)),
        }
    }
    tokens
}

/// The recursion of naga's parser and lowering is bounded by what is counted here.
fn bound_depths(tokens: &[Token<'_>]) -> Result<(), Error> {
    let (mut depth, mut operators, mut else_ifs) = (0_usize, 0, 0);
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Mark(b';' | b'{' | b'}') => operators = 0,
            Token::Mark(b',') | Token::Number => {}
            Token::Mark(_) => operators += 1,
            Token::Word("else") if tokens.get(at + 1) == Some(&Token::Word("if")) => else_ifs += 1,
            Token::Word(_) => {}
        }
        match token {
            Token::Mark(b'(' | b'[' | b'{') => depth += 1,
            Token::Mark(b')' | b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        check_depth("nested brackets", depth, NESTING_MAX)?;
        check_depth("operators in one statement", operators, OPERATORS_MAX)?;
        check_depth("`else if`", else_ifs, ELSE_IFS_MAX)?;
    }
    Ok(())
}

fn check_depth(what: &'static str, count: usize, max: usize) -> Result<(), Error> {
    if count > max { Err(Error::TooDeep { what, max }) } else { Ok(()) }
}

/// The names that the text declares anywhere.
struct Names<'a> {
    types: HashSet<&'a str>,
    functions: HashSet<&'a str>,
}

impl<'a> Names<'a> {
    fn declared(tokens: &[Token<'a>]) -> Names<'a> {
        let mut names = Names { types: HashSet::new(), functions: HashSet::new() };
        for pair in tokens.windows(2) {
            match *pair {
                [Token::Word("alias" | "struct"), Token::Word(name)] => names.types.insert(name),
                [Token::Word("fn"), Token::Word(name)] => names.functions.insert(name),
                _ => false,
            };
        }
        names
    }

    /// Whether `name()` is a call of a function, or a zero of at most sixteen numbers.
    fn is_small_without_arguments(&self, name: &str) -> bool {
        let known = self.functions.contains(name) || CALLED_WITHOUT_ARGUMENTS.contains(&name) || is_small_type(name);
        known && !self.types.contains(name)
    }
}

/// `f32`, `vec3`, `vec3f`, `mat4x4`, `mat4x4h` and their like.
fn is_small_type(name: &str) -> bool {
    let vector = name.strip_prefix("vec").and_then(|rest| rest.strip_prefix(['2', '3', '4']));
    let columns = name.strip_prefix("mat").and_then(|rest| rest.strip_prefix(['2', '3', '4']));
    let matrix = columns.and_then(|rest| rest.strip_prefix('x')).and_then(|rest| rest.strip_prefix(['2', '3', '4']));
    let ends = |rest: &str| matches!(rest, "" | "f" | "h" | "i" | "u");
    matches!(name, "f32" | "f16" | "i32" | "u32" | "bool") || vector.or(matrix).is_some_and(ends)
}

/// Naga copies a constant's whole value at each use, and a constant made of constants as a tree: only small ones are let through.
fn refuse_const_tables(tokens: &[Token<'_>], names: &Names<'_>) -> Result<(), Error> {
    let mut in_const = None;
    for (at, token) in tokens.iter().enumerate() {
        match *token {
            Token::Word("const") => in_const = Some(tokens.get(at + 1)),
            Token::Mark(b';') => in_const = None,
            Token::Word(word) if word == "array" || names.types.contains(word) => {
                if let Some(name) = in_const {
                    return Err(Error::ConstTable { name: word_of(name) });
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Naga's evaluator spells out the zero of an array, however long, to find that it cannot be added to anything.
fn refuse_zero_values(tokens: &[Token<'_>], names: &Names<'_>) -> Result<(), Error> {
    for (at, pair) in tokens.windows(2).enumerate() {
        if *pair != [Token::Mark(b'('), Token::Mark(b')')] {
            continue;
        }
        let name = match tokens[..at] {
            [.., Token::Word(name)] => name,
            [.., Token::Word(name), Token::Mark(b'<'), Token::Word(_), Token::Mark(b'>')] => name,
            [.., Token::Mark(b'>')] => "array",
            _ => continue, // no call: naga says what is wrong with it
        };
        if !names.is_small_without_arguments(name) {
            return Err(Error::ZeroValue { name: name.to_owned() });
        }
    }
    Ok(())
}

fn word_of(token: Option<&Token<'_>>) -> String {
    if let Some(Token::Word(word)) = token { (*word).to_owned() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_become_blanks_of_the_same_length() {
        for (source, expected) in [
            ("a // ä (\nb", "a        \nb"),
            ("a /* /* ) */ \n */ b", "a            \n    b"),
            ("a /*/ b */ c", "a          c"),
            ("a / /**/ / b", "a /      / b"),
            ("a */ b", "a */ b"),
            ("// /* \r b", "      \r b"),
            ("/* // */ b", "         b"),
            ("/* open", "       "),
        ] {
            assert_eq!(blank_comments(source).unwrap(), expected, "{source:?}");
        }
        assert_eq!(blank_comments("a = ä"), Err(Error::NotAscii { offset: 4 }));
    }

    #[test]
    fn numbers_hide_no_operators() {
        let marks = |text| tokens(text).iter().filter(|token| matches!(token, Token::Mark(_))).count();
        assert_eq!((marks("0xe+0xe+1"), marks("1.0.x.x"), marks("a<b>=c"), marks("1e-5")), (2, 3, 3, 1));
    }
}
